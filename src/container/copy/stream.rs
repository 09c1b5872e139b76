//! What the two ends of a copy say: directories that are entered and left, files and links in the one entered last.
//!
//! An item is a byte for its kind, and what that needs: names and targets with their length before (16 bits), mode, time
//! since 1970 in seconds and nanoseconds, contents in chunks with their length before (32 bits) up to an empty one. Numbers
//! are little-endian. A sender that fails says so instead of the next item or chunk.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::damaged;
use crate::error::Error;

/// Longest chunk, in bytes.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// Longest name or target of a link (PATH_MAX).
const MAX_NAME_BYTES: usize = 4096;
/// Longest text of an error.
const MAX_ERROR_BYTES: usize = 16 * 1024;

const DIRECTORY: u8 = b'd';
const CONTENTS: u8 = b'c';
const LEAVE: u8 = b'u';
const FILE: u8 = b'f';
const LINK: u8 = b'l';
const END: u8 = b'e';
/// In the place of a chunk's length.
const FAILED: u32 = u32::MAX;
const FAILED_ITEM: u8 = b'x';

/// Mode and time of a file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looks {
    /// Permission, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A directory, with what follows in it until it is left.
    Directory(OsString, Looks),
    /// The same without itself: what follows belongs in the destination.
    Contents,
    Leave,
    /// A file, whose chunks follow.
    File(OsString, Looks),
    /// A symbolic link, and its target.
    Link(OsString, Looks, OsString),
    End,
}

/// The sending end.
pub(super) struct Sender<W>(pub(super) W);

/// The receiving end.
pub(super) struct Source<R>(pub(super) R);

/// What a receiver hears.
pub(super) enum Heard {
    Item(Item),
    /// The sender has failed.
    Failed(Error),
}

impl<W: Write> Sender<W> {
    pub(super) fn item(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Directory(name, looks) => self.named(DIRECTORY, name, *looks),
            Item::File(name, looks) => self.named(FILE, name, *looks),
            Item::Link(name, looks, target) => {
                self.named(LINK, name, *looks)?;
                self.text(target.as_bytes())
            }
            Item::Contents => self.0.write_all(&[CONTENTS]),
            Item::Leave => self.0.write_all(&[LEAVE]),
            Item::End => self.0.write_all(&[END]).and_then(|()| self.0.flush()),
        }
    }

    /// Part of the contents of the last file; an empty one ends them. At most [`CHUNK_BYTES`].
    pub(super) fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.0.write_all(bytes)
    }

    /// Says why there is no more, `in_file` if its contents have not ended.
    pub(super) fn failed(&mut self, error: &Error, in_file: bool) -> io::Result<()> {
        match in_file {
            true => self.0.write_all(&FAILED.to_le_bytes())?,
            false => self.0.write_all(&[FAILED_ITEM])?,
        }
        let text = error.encode();
        self.text(&text.as_bytes()[..text.len().min(MAX_ERROR_BYTES)])?;
        self.0.flush()
    }

    fn named(&mut self, kind: u8, name: &OsStr, looks: Looks) -> io::Result<()> {
        self.0.write_all(&[kind])?;
        self.text(name.as_bytes())?;
        self.0.write_all(&looks.mode.to_le_bytes())?;
        self.0.write_all(&looks.seconds.to_le_bytes())?;
        self.0.write_all(&looks.nanoseconds.to_le_bytes())
    }

    fn text(&mut self, text: &[u8]) -> io::Result<()> {
        let length = u16::try_from(text.len()).map_err(|_| damaged())?;
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(text)
    }
}

impl<R: Read> Source<R> {
    pub(super) fn next(&mut self) -> io::Result<Heard> {
        let [kind] = self.bytes()?;
        Ok(Heard::Item(match kind {
            DIRECTORY => Item::Directory(self.name()?, self.looks()?),
            FILE => Item::File(self.name()?, self.looks()?),
            LINK => Item::Link(self.name()?, self.looks()?, OsString::from_vec(self.text(MAX_NAME_BYTES)?)),
            CONTENTS => Item::Contents,
            LEAVE => Item::Leave,
            END => Item::End,
            FAILED_ITEM => return self.error().map(Heard::Failed),
            _ => return Err(damaged()),
        }))
    }

    /// The next chunk of the last file, at the front of `buffer`; 0 at its end. The inner error is the sender's.
    pub(super) fn chunk(&mut self, buffer: &mut [u8; CHUNK_BYTES]) -> io::Result<Result<usize, Error>> {
        let length = u32::from_le_bytes(self.bytes()?);
        if length == FAILED {
            return self.error().map(Err);
        }
        let chunk = buffer.get_mut(..length as usize).ok_or_else(damaged)?;
        self.0.read_exact(chunk)?;
        Ok(Ok(chunk.len()))
    }

    /// A name that stands for something in a directory, and for nothing else.
    fn name(&mut self) -> io::Result<OsString> {
        let name = self.text(MAX_NAME_BYTES)?;
        let single =
            !matches!(&*name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0));
        if single { Ok(OsString::from_vec(name)) } else { Err(damaged()) }
    }

    fn looks(&mut self) -> io::Result<Looks> {
        Ok(Looks {
            mode: u32::from_le_bytes(self.bytes()?) & 0o7777,
            seconds: i64::from_le_bytes(self.bytes()?),
            nanoseconds: u32::from_le_bytes(self.bytes()?),
        })
    }

    fn error(&mut self) -> io::Result<Error> {
        let text = self.text(MAX_ERROR_BYTES)?;
        Error::decode(&String::from_utf8_lossy(&text)).ok_or_else(damaged)
    }

    fn text(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let length = usize::from(u16::from_le_bytes(self.bytes()?));
        if length > most {
            return Err(damaged());
        }
        let mut text = vec![0; length];
        self.0.read_exact(&mut text)?;
        Ok(text)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_arrive_as_they_were_sent() {
        let looks = Looks { mode: 0o4755, seconds: -1, nanoseconds: 7 };
        let items = [
            Item::Contents,
            Item::Directory("d".into(), looks),
            Item::Link("l".into(), looks, "../../etc".into()),
            Item::Leave,
            Item::End,
        ];
        let mut sender = Sender(Vec::new());
        for item in &items {
            sender.item(item).expect("room");
        }
        sender.failed(&Error::new("cannot read", "x", "gone"), false).expect("room");
        let mut source = Source(&*sender.0);
        for item in items {
            assert!(matches!(source.next(), Ok(Heard::Item(heard)) if heard == item), "{item:?}");
        }
        assert!(
            matches!(source.next(), Ok(Heard::Failed(error)) if error.to_string() == "cannot read x: gone")
        );
        assert!(source.next().is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            let mut sender = Sender(Vec::new());
            sender.item(&Item::File(name.into(), Looks::default())).expect("room");
            assert!(Source(&*sender.0).next().is_err(), "{name:?}");
        }
    }

    #[test]
    fn chunks_end_with_an_empty_one_or_an_error() {
        let mut sender = Sender(Vec::new());
        sender.chunk(b"abc").and_then(|()| sender.chunk(b"")).expect("room");
        sender.failed(&Error::new("a", "b", "c"), true).expect("room");
        let (mut source, mut buffer) = (Source(&*sender.0), [0; CHUNK_BYTES]);
        assert!(matches!(source.chunk(&mut buffer), Ok(Ok(3))) && buffer.starts_with(b"abc"));
        assert!(matches!(source.chunk(&mut buffer), Ok(Ok(0))));
        assert!(matches!(source.chunk(&mut buffer), Ok(Err(_))));
        let mut long = Source(&[0, 0, 1, 1][..]);
        assert!(long.chunk(&mut buffer).is_err());
    }
}
