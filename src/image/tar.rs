//! Tar archives, read entry by entry: what POSIX calls ustar and pax, and GNU's long names and sparse files.
//!
//! Formats only: whatever can be read is understood here, and nothing is opened or made. Names are as the archive has
//! them; `name` judges them. Extensions are at most [`MAX_EXTENSION_BYTES`], a sparse file has at most
//! [`MAX_SEGMENTS`] parts, and an archive without its end marker is cut short.
//!
//! POSIX.1-2017, pax(1), "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual, "Basic Tar Format"
//! and "Storing Sparse Files".

use std::io::{self, ErrorKind, Read};
use std::str;

const BLOCK: usize = 512;
/// Most that an extended header or a long name takes: attributes are 64 KiB each, names 4 KiB.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Headers in a row that extend one entry: there are three kinds, and global ones.
const MAX_EXTENSIONS: usize = 16;
/// Most parts of a sparse file that hold something.
const MAX_SEGMENTS: usize = 65_536;
const NANOSECONDS: u32 = 1_000_000_000;

/// An archive on its way through `R`.
pub(super) struct Reader<R> {
    input: R,
    /// Bytes of the current entry that are still in the input.
    content: u64,
    /// What fills its last block.
    padding: u64,
    /// Bytes taken from the input.
    position: u64,
    /// Records of global headers.
    global: Records,
    ended: bool,
}

/// One file, link or directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// What a link leads to; for a hard link the path of an entry.
    pub(super) link: Vec<u8>,
    /// Permission, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) modified: Modified,
    pub(super) owner: Owner,
    /// Bytes of the file, holes included; 0 for everything else.
    pub(super) size: u64,
    /// The parts of the file that the content is for, in order: all of it, unless it is sparse.
    pub(super) segments: Vec<Segment>,
    /// Extended attributes with their full names.
    pub(super) attributes: Vec<(String, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    Device,
    /// Of a type that this does not know.
    Other(u8),
}

/// Whose something is, by numbers. By default it is root's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// When something was last changed, since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Modified {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        let global = Records::default();
        Self { input, content: 0, padding: 0, position: 0, global, ended: false }
    }

    /// Bytes taken from the input: after [`Self::next`] where the entry's content begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes from there to the next header.
    pub(super) fn stored(&self) -> u64 {
        self.content + self.padding
    }

    /// The next entry, `None` after the last. What was left of the one before is skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip()?;
        let mut extension = Records::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(header) = self.header()? else {
                return if extension.is_empty() { Ok(None) } else { Err(cut_short()) };
            };
            match header.kind() {
                b'x' => extension.read(&self.extension(&header)?)?,
                b'g' => {
                    let text = self.extension(&header)?;
                    self.global.read(&text)?;
                }
                b'L' => extension.path = Some(until_nul(&self.extension(&header)?).to_vec()),
                b'K' => extension.link = Some(until_nul(&self.extension(&header)?).to_vec()),
                _ => return self.entry(&header, extension).map(Some),
            }
        }
        Err(damaged("one entry has too many headers"))
    }

    /// What follows the archive's end marker.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = self.content + self.padding;
        let skipped = io::copy(&mut self.input.by_ref().take(left), &mut io::sink())?;
        self.position += skipped;
        (self.content, self.padding) = (0, 0);
        if skipped == left { Ok(()) } else { Err(cut_short()) }
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(|cause| match cause.kind() {
            ErrorKind::UnexpectedEof => cut_short(),
            _ => cause,
        })?;
        self.position += BLOCK as u64;
        Ok(block)
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let is_first = self.position == 0;
        let header = Header(self.block()?);
        if header.0 == [0; BLOCK] {
            self.ended = true;
            return Ok(None);
        }
        match header.is_sound() {
            true => Ok(Some(header)),
            false if is_first => Err(io::Error::new(ErrorKind::InvalidData, "it is no tar")),
            false => Err(damaged("a header's checksum is wrong")),
        }
    }

    /// All of the content that `header` announces.
    fn extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        if size > MAX_EXTENSION_BYTES {
            return Err(damaged(&format!("a name or an extended header has {size} bytes")));
        }
        self.announce(size);
        let mut text = Vec::new();
        self.read_to_end(&mut text)?;
        self.skip()?;
        Ok(text)
    }

    fn announce(&mut self, content: u64) {
        self.content = content;
        self.padding = content.wrapping_neg() % BLOCK as u64;
    }

    fn entry(&mut self, header: &Header, extension: Records) -> io::Result<Entry> {
        let records = extension.over(&self.global);
        let stored = records.size.map_or_else(|| header.size(), Ok)?;
        let has_content = !matches!(header.kind(), b'1'..=b'6');
        let content = if has_content { stored } else { 0 };
        if i64::try_from(content).is_err() {
            return Err(damaged("an entry is larger than a file can be"));
        }
        self.announce(content);
        let (size, segments) = match (header.kind(), &records.sparse) {
            (b'S', _) => self.gnu_sparse(header)?,
            (_, Some(sparse)) => self.pax_sparse(sparse)?,
            (_, None) => (content, vec![Segment { offset: 0, length: content }]),
        };
        check_segments(&segments, size, self.content)?;
        let path = records.path.unwrap_or_else(|| header.path());
        Ok(Entry {
            kind: kind(header.kind(), &path),
            link: records.link.unwrap_or_else(|| until_nul(header.field(157, 100)).to_vec()),
            mode: (header.number(100, 8)? & 0o7777) as u32,
            modified: records.modified.map_or_else(|| header.modified(), Ok)?,
            owner: Owner {
                uid: records.uid.map_or_else(|| header.id(108), Ok)?,
                gid: records.gid.map_or_else(|| header.id(116), Ok)?,
            },
            size,
            segments,
            attributes: records.attributes,
            path,
        })
    }

    /// The map of GNU's own format: four parts in the header, and 21 in each block that follows.
    fn gnu_sparse(&mut self, header: &Header) -> io::Result<(u64, Vec<Segment>)> {
        let mut segments = header.segments(386, 4)?;
        let mut more = header.0[482] != 0;
        while more {
            let block = Header(self.block()?);
            segments.extend(block.segments(0, 21)?);
            more = block.0[504] != 0;
            check_count(segments.len())?;
        }
        Ok((header.number(483, 12)?, segments))
    }

    /// The map of pax formats 0.0 and 0.1, which are records, or of 1.0, before the content.
    fn pax_sparse(&mut self, sparse: &Sparse) -> io::Result<(u64, Vec<Segment>)> {
        let numbers = if sparse.major == 0 { sparse.numbers.clone() } else { self.leading_numbers()? };
        if numbers.len() % 2 != 0 {
            return Err(damaged("a sparse file's map is odd"));
        }
        let pairs = numbers.chunks_exact(2);
        Ok((sparse.size, pairs.map(|pair| Segment { offset: pair[0], length: pair[1] }).collect()))
    }

    /// A count and that many pairs, one number a line, in whole blocks.
    fn leading_numbers(&mut self) -> io::Result<Vec<u64>> {
        let (mut numbers, mut wanted, mut line) = (Vec::new(), None, Vec::new());
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(|_| damaged("a sparse file has no map"))?;
            for byte in block {
                match (byte, wanted) {
                    (b'\n', None) => {
                        wanted = Some(number(&line)?.saturating_mul(2) as usize);
                        check_count(wanted.unwrap_or_default() / 2)?;
                        line.clear();
                    }
                    (b'\n', Some(wanted)) if numbers.len() < wanted => {
                        numbers.push(number(&line)?);
                        line.clear();
                    }
                    _ if line.len() < BLOCK => line.push(byte),
                    _ => return Err(damaged("a sparse file's map has an endless line")),
                }
            }
        }
        Ok(numbers)
    }
}

/// The content of the current entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(cut_short());
        }
        self.content -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

/// A header block.
struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn size(&self) -> io::Result<u64> {
        self.number(124, 12)
    }

    /// Whether the sum of all bytes, with blanks in its own place, is as the header says.
    fn is_sound(&self) -> bool {
        let blanks = 8 * u64::from(b' ');
        let others = self.0[..148].iter().chain(&self.0[156..]);
        let sum = blanks + others.map(|byte| u64::from(*byte)).sum::<u64>();
        self.number(148, 8).is_ok_and(|said| said == sum)
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU keeps other things where ustar has a prefix.
        let prefix = if self.field(257, 6) == b"ustar\0" { until_nul(self.field(345, 155)) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn number(&self, at: usize, length: usize) -> io::Result<u64> {
        match self.signed(at, length)?.try_into() {
            Ok(number) => Ok(number),
            Err(_) => Err(damaged("a header has a negative number")),
        }
    }

    fn id(&self, at: usize) -> io::Result<u32> {
        self.number(at, 8)?.try_into().map_err(|_| damaged("an owner is out of range"))
    }

    fn modified(&self) -> io::Result<Modified> {
        let seconds = i64::try_from(self.signed(136, 12)?).map_err(|_| damaged("a date is out of range"))?;
        Ok(Modified { seconds, nanoseconds: 0 })
    }

    /// Octal digits, or with GNU's mark big-endian two's complement.
    fn signed(&self, at: usize, length: usize) -> io::Result<i128> {
        let field = self.field(at, length);
        if field[0] & 0x80 == 0 {
            let blank = |byte: &u8| matches!(byte, b' ' | 0);
            let mut digits = field.iter().skip_while(|byte| blank(byte)).take_while(|byte| !blank(byte));
            return digits.try_fold(0, |number: i128, digit| match digit {
                b'0'..=b'7' => Ok(number * 8 + i128::from(digit - b'0')),
                _ => Err(damaged("a header has no number where one belongs")),
            });
        }
        // The mark is bit 7, the sign bit 6 of the first byte.
        let first = i128::from((field[0] << 1) as i8 >> 1);
        Ok(field[1..].iter().fold(first, |number, byte| number << 8 | i128::from(*byte)))
    }

    /// A table of offsets and lengths, until its first unused place.
    fn segments(&self, at: usize, places: usize) -> io::Result<Vec<Segment>> {
        let used = (0..places).map(|place| at + place * 24).take_while(|at| self.0[*at] != 0);
        used.map(|at| Ok(Segment { offset: self.number(at, 12)?, length: self.number(at + 12, 12)? }))
            .collect()
    }
}

/// What extended headers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Modified>,
    uid: Option<u32>,
    gid: Option<u32>,
    sparse: Option<Sparse>,
    attributes: Vec<(String, Vec<u8>)>,
}

/// A sparse file in a pax format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sparse {
    major: u64,
    size: u64,
    numbers: Vec<u64>,
}

impl Records {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the records of `text`: `LENGTH KEY=VALUE` and a newline each. A value may hold newlines.
    fn read(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() && text[0] != 0 {
            let (key, value, rest) =
                record(text).ok_or_else(|| damaged("an extended header is malformed"))?;
            self.set(key, value)?;
            text = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let given = (!value.is_empty()).then(|| value.to_vec());
        match key {
            "path" => self.path = given,
            "linkpath" => self.link = given,
            "size" => self.size = given.as_deref().map(number).transpose()?,
            "mtime" => self.modified = given.as_deref().map(date).transpose()?,
            "uid" => self.uid = given.as_deref().map(id).transpose()?,
            "gid" => self.gid = given.as_deref().map(id).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    self.attributes.retain(|(other, _)| other != name);
                    let held: usize =
                        self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
                    // A global header holds for all that follow, and there may be many.
                    if (held + name.len() + value.len()) as u64 > MAX_EXTENSION_BYTES {
                        return Err(damaged("it has too many extended attributes"));
                    }
                    self.attributes.push((name.to_owned(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix("GNU.sparse.") {
                    self.set_sparse(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_sparse(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        let sparse = self.sparse.get_or_insert_default();
        match name {
            "major" => sparse.major = number(value)?,
            "realsize" | "size" => sparse.size = number(value)?,
            "offset" | "numbytes" => sparse.numbers.push(number(value)?),
            "map" => {
                sparse.numbers = value.split(|byte| *byte == b',').map(number).collect::<Result<_, _>>()?
            }
            "name" => self.path = Some(value.to_vec()),
            _ => {}
        }
        check_count(sparse.numbers.len() / 2)
    }

    /// These, and what they leave open from `global`.
    fn over(mut self, global: &Self) -> Self {
        let Self { path, link, size, modified, uid, gid, sparse, attributes } = global.clone();
        let is_new = |name: &str| !self.attributes.iter().any(|(other, _)| other == name);
        let inherited: Vec<_> = attributes.into_iter().filter(|(name, _)| is_new(name)).collect();
        self.attributes.extend(inherited);
        Self {
            path: self.path.or(path),
            link: self.link.or(link),
            size: self.size.or(size),
            modified: self.modified.or(modified),
            uid: self.uid.or(uid),
            gid: self.gid.or(gid),
            sparse: self.sparse.or(sparse),
            attributes: self.attributes,
        }
    }
}

/// The first record's key and value, and what follows it.
fn record(text: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let blank = text.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
    let line = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    Some((str::from_utf8(&line[..equals]).ok()?, &line[equals + 1..], &text[length..]))
}

fn number(text: &[u8]) -> io::Result<u64> {
    let parsed = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| damaged("an extended header has no number where one belongs"))
}

fn id(text: &[u8]) -> io::Result<u32> {
    number(text)?.try_into().map_err(|_| damaged("an owner is out of range"))
}

/// `SECONDS[.FRACTION]`, before 1970 with a sign.
fn date(text: &[u8]) -> io::Result<Modified> {
    let wrong = || damaged("an extended header has no date where one belongs");
    let text = str::from_utf8(text).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| wrong())?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Ok(Modified {
            seconds: seconds.checked_sub(1).ok_or_else(wrong)?,
            nanoseconds: NANOSECONDS - nanoseconds,
        }),
        _ => Ok(Modified { seconds, nanoseconds }),
    }
}

fn kind(kind: u8, path: &[u8]) -> Kind {
    match kind {
        // Before there was a type for directories their names ended so.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' | b'4' => Kind::Device,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn check_count(segments: usize) -> io::Result<()> {
    match segments {
        ..=MAX_SEGMENTS => Ok(()),
        _ => Err(damaged(&format!("a sparse file has more than {MAX_SEGMENTS} parts"))),
    }
}

/// Whether the parts follow each other within `size`, and are what is stored.
fn check_segments(segments: &[Segment], size: u64, stored: u64) -> io::Result<()> {
    let end = segments.iter().try_fold(0, |end, segment| {
        let follows = segment.offset >= end;
        follows.then(|| segment.offset.checked_add(segment.length)).flatten()
    });
    let sum = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.length));
    match end {
        Some(end) if end <= size && sum == Some(stored) && i64::try_from(size).is_ok() => Ok(()),
        _ => Err(damaged("a sparse file's map is wrong")),
    }
}

fn cut_short() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it is cut short")
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("it is damaged: {what}"))
}

#[cfg(test)]
mod tests;
