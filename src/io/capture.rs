//! A record of frames in the classic pcap format (draft-ietf-opsawg-pcap): the machine's byte order, microseconds,
//! Ethernet.
//!
//! Frames are recorded as they cross the link: a large segment is one frame, and a checksum that the kernel has still
//! to finish is not finished. A record that cannot be written any more ends; the network does not.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// Longest frame that is recorded, in bytes: all are shorter.
const SNAP_BYTES: u32 = 256 * 1024;
const LINKTYPE_ETHERNET: u32 = 1;

/// A file that frames are written to.
#[derive(Debug)]
pub struct Capture {
    file: File,
    failed: bool,
}

impl Capture {
    /// Begins a record at `path`; what was there is lost.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut header = MAGIC.to_ne_bytes().to_vec();
        header.extend(VERSION.iter().flat_map(|number| number.to_ne_bytes()));
        for field in [0, 0, SNAP_BYTES, LINKTYPE_ETHERNET] {
            header.extend(field.to_ne_bytes());
        }
        file.write_all(&header)?;
        Ok(Self { file, failed: false })
    }

    /// The same record once more.
    pub fn another(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, failed: self.failed })
    }

    /// Records a frame that crosses the link now, in either direction.
    pub(super) fn frame(&mut self, frame: &[u8]) {
        if self.failed {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let frame = &frame[..frame.len().min(SNAP_BYTES as usize)];
        let length = u32::try_from(frame.len()).unwrap_or(SNAP_BYTES);
        // The format's seconds end in 2106.
        let mut record = Vec::with_capacity(16 + frame.len());
        for field in [now.as_secs() as u32, now.subsec_micros(), length, length] {
            record.extend(field.to_ne_bytes());
        }
        record.extend(frame);
        if let Err(error) = self.file.write_all(&record) {
            tracing::warn!(%error, "the record of frames ends");
            self.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_a_header() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("frames.pcap");
        let mut capture = Capture::create(&path).expect("made");
        capture.frame(&[7; 60]);
        capture.frame(&[8; 14]);
        let bytes = std::fs::read(&path).expect("readable");
        let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((field(0), field(20)), (MAGIC, LINKTYPE_ETHERNET));
        assert_eq!((field(24 + 8), field(24 + 12)), (60, 60));
        assert_eq!(bytes[40..100], [7; 60]);
        assert_eq!(field(100 + 8), 14);
        assert_eq!(bytes.len(), 24 + 16 + 60 + 16 + 14);
    }
}
