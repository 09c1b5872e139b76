//! The output of a container as it is kept: one JSON object for each line, `{"log", "stream", "time"}`, as docker's
//! json-file driver writes it.
//!
//! The newer half of what may be kept is in `log`, the older in `log.1`; when the newer is full it becomes the older. A
//! reader finds lines in order, and may lose the oldest while it reads. What is not UTF-8 is kept with replacement
//! characters.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The newer half.
pub(super) const NEWER: &str = "log";
/// The older half.
pub(super) const OLDER: &str = "log.1";
/// Longest piece of a line that is kept as one, in bytes; docker's.
pub const MAX_PIECE_BYTES: usize = 16 * 1024;
/// Longest line of the file that is read, in bytes: a piece in which every byte is written as `\u0001`, and the rest.
const MAX_ENTRY_BYTES: u64 = MAX_PIECE_BYTES as u64 * 6 + 1024;

/// A stream of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, and what is printed on a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of output, or a piece of a long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The text; its newline too, unless it is a piece or the stream ended without one.
    pub log: String,
    /// Where it was written.
    pub stream: Stream,
    /// When rnet read it.
    pub time: Timestamp,
}

/// Keeps lines.
#[derive(Debug)]
pub struct LogWriter {
    directory: PathBuf,
    file: File,
    size: u64,
    /// Beyond it the newer half is full.
    half_bytes: u64,
    /// The last line has not been written whole.
    torn: bool,
}

impl LogWriter {
    /// Keeps up to `max_bytes` in `directory`, beside what is there already.
    pub(super) fn open(directory: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = append_to(&directory.join(NEWER))?;
        let size = file.metadata()?.len();
        Ok(Self { directory: directory.to_owned(), file, size, half_bytes: max_bytes / 2, torn: size > 0 })
    }

    /// Keeps `lines`, all of which are of one moment. What cannot be written is lost.
    pub fn keep(&mut self, stream: Stream, lines: &[String]) {
        let time = Timestamp::now();
        for line in lines {
            let entry = Entry { log: line.clone(), stream, time };
            if let Err(error) = self.write(&entry) {
                self.torn = true;
                tracing::debug!(%error, "a line of output is lost");
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut text = serde_json::to_string(entry)?;
        text.push('\n');
        if self.size > 0 && self.size + text.len() as u64 > self.half_bytes {
            fs::rename(self.directory.join(NEWER), self.directory.join(OLDER))?;
            self.file = append_to(&self.directory.join(NEWER))?;
            (self.size, self.torn) = (0, false);
        }
        if self.torn {
            text.insert(0, '\n');
        }
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        self.torn = false;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Which lines are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Not those before.
    pub since: Option<Timestamp>,
    /// Of those that are there only so many, the last.
    pub tail: Option<usize>,
}

/// Reads what is kept, in order.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    file: Option<BufReader<File>>,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// Reads in the `directory` of a container, from the first line on.
    pub(super) fn new(directory: &Path) -> Self {
        let mut reader = Self { directory: directory.to_owned(), file: None, partial: Vec::new() };
        reader.file = [OLDER, NEWER].into_iter().find_map(|name| reader.open(name));
        reader
    }

    /// Hands all `wanted` lines that are there to `show`.
    pub fn read(&mut self, wanted: Wanted, mut show: impl FnMut(&Entry) -> io::Result<()>) -> io::Result<()> {
        let mut last = VecDeque::new();
        while let Some(entry) = self.next()? {
            if wanted.since.is_some_and(|since| entry.time < since) {
                continue;
            }
            let Some(tail) = wanted.tail else {
                show(&entry)?;
                continue;
            };
            last.push_back(entry);
            if last.len() > tail {
                last.pop_front();
            }
        }
        last.iter().try_for_each(show)
    }

    /// The next line; `None` if there is none yet. Lines that cannot be understood are left out.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(file) = &mut self.file else {
                self.file = self.open(NEWER);
                if self.file.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let room = MAX_ENTRY_BYTES.saturating_sub(self.partial.len() as u64);
            let len = file.take(room).read_until(b'\n', &mut self.partial)?;
            if self.partial.last() == Some(&b'\n') || len as u64 == room {
                let entry = serde_json::from_slice(&self.partial);
                self.partial.clear();
                if let Ok(entry) = entry {
                    return Ok(Some(entry));
                }
            } else if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Goes on with the file that follows the one that has been read to its end; false if that is the newest.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(ours) = &self.file else { return Ok(true) };
        let ours = inode(ours.get_ref())?;
        let Some(newer) = self.open(NEWER) else { return Ok(false) };
        if inode(newer.get_ref())? == ours {
            return Ok(false);
        }
        // One that is neither was pushed out while it was read.
        let older = self.open(OLDER);
        let is_next = |file: &BufReader<File>| inode(file.get_ref()).is_ok_and(|inode| inode != ours);
        // The file may have grown between its end and its change of name.
        let grew = self.file.as_mut().is_some_and(|file| file.fill_buf().is_ok_and(|rest| !rest.is_empty()));
        if !grew {
            self.file = Some(older.filter(is_next).unwrap_or(newer));
            self.partial.clear();
        }
        Ok(true)
    }

    fn open(&self, name: &str) -> Option<BufReader<File>> {
        File::open(self.directory.join(name)).ok().map(BufReader::new)
    }
}

fn inode(file: &File) -> io::Result<u64> {
    file.metadata().map(|about| about.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_in_order_by_stream_and_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::open(directory.path(), 10_000).expect("a log");
        writer.keep(Stream::Stdout, &["one\n".into(), "two\n".into()]);
        writer.keep(Stream::Stderr, &["three".into()]);
        assert_eq!(texts(directory.path(), Wanted::default()), ["one\n", "two\n", "three"]);
        assert_eq!(texts(directory.path(), Wanted { tail: Some(1), since: None }), ["three"]);
        let later = Timestamp::at(std::time::Duration::from_secs(9_999_999_999));
        assert!(texts(directory.path(), Wanted { tail: None, since: Some(later) }).is_empty());
    }

    #[test]
    fn it_is_bounded_and_keeps_the_latest() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::open(directory.path(), 4000).expect("a log");
        for number in 0..1000 {
            writer.keep(Stream::Stdout, &[format!("{number}\n")]);
        }
        let kept = texts(directory.path(), Wanted::default());
        let expected: Vec<String> = (1000 - kept.len()..1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(kept, expected);
        assert!(kept.len() > 10);
        let size = |name| fs::metadata(directory.path().join(name)).expect("it is there").len();
        assert!(size(NEWER) <= 2000 && size(OLDER) <= 2000);
    }

    #[test]
    fn a_reader_that_follows_misses_nothing_but_what_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::open(directory.path(), 4000).expect("a log");
        let mut reader = LogReader::new(directory.path());
        let mut seen = Vec::new();
        for number in 0..300 {
            writer.keep(Stream::Stdout, &[format!("{number}")]);
            if number % 7 == 0 {
                collect(&mut reader, &mut seen);
            }
        }
        collect(&mut reader, &mut seen);
        assert_eq!(seen, (0..300).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn torn_lines_are_left_out() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(NEWER), "{\"log\":\"hal").expect("written");
        let mut writer = LogWriter::open(directory.path(), 4000).expect("a log");
        writer.keep(Stream::Stdout, &["whole\n".into()]);
        assert_eq!(texts(directory.path(), Wanted::default()), ["whole\n"]);
    }

    fn texts(directory: &Path, wanted: Wanted) -> Vec<String> {
        let mut seen = Vec::new();
        let show = |entry: &Entry| {
            seen.push(entry.log.clone());
            Ok(())
        };
        LogReader::new(directory).read(wanted, show).expect("readable");
        seen
    }

    fn collect(reader: &mut LogReader, seen: &mut Vec<String>) {
        let show = |entry: &Entry| {
            seen.push(entry.log.clone());
            Ok(())
        };
        reader.read(Wanted::default(), show).expect("readable");
    }
}
