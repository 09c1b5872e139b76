//! The sending end of a copy: walks a tree by descriptors, so that nothing leads out of it while others change it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::stream::{CHUNK_BYTES, Item, Looks, Sender};
use crate::error::{Context, Error, Result};

/// Directories within each other: each takes a descriptor.
const MAX_DEPTH: usize = 200;

/// Sends what is at `source`. Of a directory whose path ends in `/.`, or names no entry, only the contents.
pub(super) fn send(stream: &UnixStream, source: &Path, follow: bool) -> Result<()> {
    let mut walk = Walk {
        out: Sender(BufWriter::with_capacity(CHUNK_BYTES, stream)),
        buffer: vec![0; CHUNK_BYTES],
        in_file: false,
        left_out: 0,
    };
    match walk.top(source, follow).and_then(|()| walk.say(&Item::End)) {
        Ok(()) => {
            if walk.left_out > 0 {
                tracing::warn!("devices, sockets and pipes are not copied: {} of them", walk.left_out);
            }
            Ok(())
        }
        Err(error) => {
            // The receiver may be what has failed.
            let _ = walk.out.failed(&error, walk.in_file);
            Err(error)
        }
    }
}

struct Walk<W: Write> {
    out: Sender<W>,
    buffer: Vec<u8>,
    /// Chunks of a file have been sent, and not their end.
    in_file: bool,
    left_out: usize,
}

impl<W: Write> Walk<W> {
    fn top(&mut self, source: &Path, follow: bool) -> Result<()> {
        let bytes = source.as_os_str().as_bytes();
        let contents = bytes.ends_with(b"/.") || source.file_name().is_none();
        let name = source.file_name().unwrap_or_default();
        let flag =
            if follow || bytes.ends_with(b"/") { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        let found = fstatat(AT_FDCWD, source, flag).context("cannot copy", source.display())?;
        match kind(&found) {
            SFlag::S_IFDIR => {
                let directory = open(AT_FDCWD, source.as_os_str(), OFlag::O_DIRECTORY)
                    .context("cannot open", source.display())?;
                self.say(&if contents {
                    Item::Contents
                } else {
                    Item::Directory(name.to_owned(), looks(&found))
                })?;
                self.entries(directory, source, 1)?;
                self.say(&Item::Leave)
            }
            SFlag::S_IFREG => {
                let file = open(AT_FDCWD, source.as_os_str(), OFlag::empty());
                self.file(file.context("cannot open", source.display())?, name, source)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(AT_FDCWD, source).context("cannot read link", source.display())?;
                self.say(&Item::Link(name.to_owned(), looks(&found), target))
            }
            _ => Err(Error::new(
                "cannot copy",
                source.display(),
                "it is neither a file nor a directory nor a link",
            )),
        }
    }

    fn entries(&mut self, directory: OwnedFd, path: &Path, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::new("cannot copy", path.display(), "too many directories in each other"));
        }
        let listed = || directory.try_clone().map_err(|_| Errno::EMFILE).and_then(Dir::from_fd);
        let mut listed = listed().context("cannot list", path.display())?;
        for entry in listed.iter() {
            let entry = entry.context("cannot list", path.display())?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(&directory, name, &path.join(name), depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, depth: usize) -> Result<()> {
        let found = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // Removed since it was listed.
            Err(Errno::ENOENT) => return Ok(()),
            found => found.context("cannot look at", path.display())?,
        };
        match kind(&found) {
            SFlag::S_IFDIR => {
                let directory = open(parent, name, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW);
                let directory = directory.context("cannot open", path.display())?;
                self.say(&Item::Directory(name.to_owned(), looks(&found)))?;
                self.entries(directory, path, depth + 1)?;
                self.say(&Item::Leave)
            }
            SFlag::S_IFREG => {
                let file = open(parent, name, OFlag::O_NOFOLLOW).context("cannot open", path.display())?;
                self.file(file, name, path)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(parent, name).context("cannot read link", path.display())?;
                self.say(&Item::Link(name.to_owned(), looks(&found), target))
            }
            _ => {
                self.left_out += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, file: OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let found = fstat(&file).context("cannot look at", path.display())?;
        if kind(&found) != SFlag::S_IFREG {
            return Err(Error::new("cannot copy", path.display(), "it was changed meanwhile"));
        }
        let mut file = File::from(file);
        self.say(&Item::File(name.to_owned(), looks(&found)))?;
        self.in_file = true;
        loop {
            let len = match file.read(&mut self.buffer) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                read => read.context("cannot read", path.display())?,
            };
            self.out.chunk(&self.buffer[..len]).context("cannot pass on", path.display())?;
            if len == 0 {
                self.in_file = false;
                return Ok(());
            }
        }
    }

    fn say(&mut self, item: &Item) -> Result<()> {
        self.out.item(item).context("cannot pass on", "what is copied")
    }
}

/// Opens for reading, and never waits for whoever is at a pipe's other end.
fn open(parent: impl std::os::fd::AsFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    openat(parent, &PathBuf::from(name), flags, Mode::empty())
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

fn looks(found: &FileStat) -> Looks {
    Looks {
        mode: found.st_mode & 0o7777,
        seconds: found.st_mtime,
        nanoseconds: u32::try_from(found.st_mtime_nsec).unwrap_or_default(),
    }
}
