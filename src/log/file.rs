//! A log file of bounded size. It is opened for each line, so that no descriptor is held that others would close.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::LogFile;

/// A file that is appended to.
#[derive(Clone, Debug)]
pub(super) struct BoundedFile {
    path: Arc<PathBuf>,
    max_bytes: u64,
}

impl BoundedFile {
    /// Opens it, and begins with a line that says who writes.
    pub(super) fn open(file: &LogFile) -> io::Result<Self> {
        let mut file = Self { path: Arc::new(std::path::absolute(&file.path)?), max_bytes: file.max_bytes };
        writeln!(file, "pasta {} (rnet, {})", env!("CARGO_PKG_VERSION"), std::process::id())?;
        Ok(file)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the younger half, from the beginning of a line.
    fn trim(&self) -> io::Result<()> {
        let mut file = File::open(&*self.path)?;
        file.seek(SeekFrom::End(-i64::try_from(self.max_bytes / 2).unwrap_or(i64::MAX)))?;
        let mut kept = Vec::new();
        file.take(self.max_bytes).read_to_end(&mut kept)?;
        let line = kept.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        std::fs::write(&*self.path, &kept[line..])
    }
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = OpenOptions::new().append(true).create(true).open(&*self.path)?;
        let written = file.write(bytes)?;
        if file.metadata()?.len() > self.max_bytes {
            self.trim()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_younger_half_of_a_full_file_stays() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut file = BoundedFile::open(&LogFile { path: path.clone(), max_bytes: 4096 }).expect("opens");
        for number in 0..1000 {
            writeln!(file, "line {number}").expect("written");
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        assert!(text.len() <= 4096, "{}", text.len());
        assert!(text.starts_with("line ") && text.ends_with("line 999\n"), "{text}");
        let numbers: Vec<u32> = text.lines().map(|line| line[5..].parse().expect("whole lines")).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
}
