//! The host's DNS servers, kept current while the file that names them changes.
//!
//! The file is looked at by path, so it is noticed when a tool replaces it, links it elsewhere or removes it.
//! One stat(2) per second at most; the text is read only when that shows a change.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::etc::ResolvConf;
use crate::net::{Duration, Instant};

/// The file of resolv.conf(5).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Shortest time between two looks at the file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Most of the file that is read; glibc's own limits end far below.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A resolv.conf and what it said when it was last read.
#[derive(Clone, Debug)]
pub struct Resolver {
    path: PathBuf,
    looked_at: Option<Instant>,
    stamp: Option<Stamp>,
    conf: ResolvConf,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.size(),
        }
    }
}

impl Resolver {
    /// Watches the file at `path`, which need not exist. Nothing is read before the first
    /// [`refresh`](Self::refresh).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), looked_at: None, stamp: None, conf: ResolvConf::default() }
    }

    /// Looks at the file, unless that was done less than a second ago. `Some` with the servers if it was
    /// read anew: the first time and after each change. A file that is missing or cannot be read names the
    /// local server.
    pub fn refresh(&mut self, now: Instant) -> Option<&[IpAddr]> {
        if self.looked_at.is_some_and(|last| now < last + LOOK_INTERVAL) {
            return None;
        }
        let first = self.looked_at.replace(now).is_none();
        let stamp = std::fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if !first && stamp == self.stamp {
            return None;
        }
        self.stamp = stamp;
        self.read();
        Some(&self.conf.nameservers)
    }

    /// What the file said when it was last read.
    pub fn conf(&self) -> &ResolvConf {
        &self.conf
    }

    fn read(&mut self) {
        let text = match read(&self.path) {
            Ok((stamp, text)) => {
                self.stamp = Some(stamp);
                text
            }
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "no resolver configuration");
                String::new()
            }
        };
        self.conf = ResolvConf::parse(&text);
        tracing::debug!(servers = ?self.conf.nameservers, "DNS servers of the host");
    }
}

/// The text of a regular file and the stamp of that very file.
fn read(path: &Path) -> io::Result<(Stamp, String)> {
    // Nonblocking, so that a FIFO in the file's place cannot hold up the traffic.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok((Stamp::of(&metadata), String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_first_look_reads_and_the_next_says_nothing() {
        let (_dir, path) = file("nameserver 192.0.2.1\n");
        let mut resolver = Resolver::new(&path);
        assert_eq!(servers(&mut resolver, 0), Some(vec!["192.0.2.1".to_owned()]));
        assert_eq!(servers(&mut resolver, 5_000), None);
    }

    #[test]
    fn a_change_in_place_is_seen_after_a_second() {
        let (_dir, path) = file("nameserver 192.0.2.1\n");
        let mut resolver = Resolver::new(&path);
        servers(&mut resolver, 0);
        fs::write(&path, "nameserver 192.0.2.20\n").expect("writable");
        assert_eq!(servers(&mut resolver, 999), None);
        assert_eq!(servers(&mut resolver, 1_000), Some(vec!["192.0.2.20".to_owned()]));
    }

    #[test]
    fn a_replacement_of_equal_size_is_seen() {
        let (dir, path) = file("nameserver 192.0.2.1\n");
        let mut resolver = Resolver::new(&path);
        servers(&mut resolver, 0);
        let other = dir.path().join("new");
        fs::write(&other, "nameserver 192.0.2.2\n").expect("writable");
        fs::rename(&other, &path).expect("same directory");
        assert_eq!(servers(&mut resolver, 1_000), Some(vec!["192.0.2.2".to_owned()]));
    }

    #[test]
    fn a_file_that_goes_leaves_the_local_server_until_it_returns() {
        let (_dir, path) = file("nameserver 192.0.2.1\n");
        let mut resolver = Resolver::new(&path);
        servers(&mut resolver, 0);
        fs::remove_file(&path).expect("present");
        assert_eq!(servers(&mut resolver, 1_000), Some(vec!["127.0.0.1".to_owned()]));
        assert_eq!(servers(&mut resolver, 2_000), None);
        fs::write(&path, "nameserver ::1\n").expect("writable");
        assert_eq!(servers(&mut resolver, 3_000), Some(vec!["::1".to_owned()]));
    }

    #[test]
    fn a_fifo_or_directory_in_its_place_does_not_block() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        for path in [fifo, dir.path().to_owned()] {
            let mut resolver = Resolver::new(path);
            assert_eq!(servers(&mut resolver, 0), Some(vec!["127.0.0.1".to_owned()]));
            assert_eq!(servers(&mut resolver, 1_000), None);
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        fs::write(&path, text).expect("writable");
        (dir, path)
    }

    fn servers(resolver: &mut Resolver, millis: i64) -> Option<Vec<String>> {
        let servers = resolver.refresh(Instant::from_millis(millis))?;
        Some(servers.iter().map(ToString::to_string).collect())
    }
}
