//! The receiving end of a copy: puts what comes into directories that it holds open, and follows no link there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::stream::{CHUNK_BYTES, Heard, Item, Looks, Source};
use crate::error::{Context, Error, Result};

/// Directories within each other: each takes a descriptor.
const MAX_DEPTH: usize = 201;

/// Where to.
pub(super) struct Receiver<'a> {
    /// An existing directory takes what comes by its own name; anything else is its new name.
    pub(super) destination: &'a Path,
    /// Whether set-id bits mean anything good there.
    pub(super) keeps_set_id: bool,
}

/// A directory that is being filled.
struct Open {
    directory: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// What it gets at the end, if it was made.
    looks: Option<Looks>,
}

/// Receives everything.
pub(super) fn receive(stream: &UnixStream, to: &Receiver<'_>) -> Result<()> {
    let mut placing = Placing {
        from: Source(BufReader::with_capacity(CHUNK_BYTES, stream)),
        open: Vec::new(),
        mode_mask: if to.keeps_set_id { 0o7777 } else { 0o1777 },
    };
    let first = placing.next()?;
    let (parent, first) = top(to.destination, first)?;
    placing.open.push(parent);
    match first {
        // The destination is there, and stays as it is.
        Item::Contents => {
            let first = placing.next()?;
            placing.all(first)
        }
        first => placing.all(first),
    }
}

/// The directory that the first item belongs in, and the item by the name that it has there.
fn top(destination: &Path, item: Item) -> Result<(Open, Item)> {
    const FAILED: &str = "cannot copy to";
    let shown = || destination.display();
    let is_directory = |item: &Item| matches!(item, Item::Directory(..) | Item::Contents);
    let (exists, there_is_directory) = match destination.metadata() {
        Ok(metadata) => (true, metadata.is_dir()),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => (false, false),
        Err(cause) => return Err(Error::new(FAILED, shown(), cause)),
    };
    if there_is_directory {
        return Ok((open_directory(destination)?, item));
    }
    if exists && is_directory(&item) {
        return Err(Error::new(FAILED, shown(), "it is no directory, and what is copied is one"));
    }
    let bytes = destination.as_os_str().as_bytes();
    if !is_directory(&item) && (bytes.ends_with(b"/") || bytes.ends_with(b"/.")) {
        return Err(Error::new(FAILED, shown(), "there is no such directory"));
    }
    let Some(name) = destination.file_name().map(OsStr::to_owned) else {
        return Err(Error::new(FAILED, shown(), "there is no such directory"));
    };
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = open_directory(parent.unwrap_or(Path::new(".")))?;
    let renamed = match item {
        Item::Directory(_, looks) => Item::Directory(name, looks),
        Item::Contents => Item::Directory(name, Looks { mode: 0o755, ..Looks::default() }),
        Item::File(_, looks) => Item::File(name, looks),
        Item::Link(_, looks, target) => Item::Link(name, looks, target),
        other => other,
    };
    Ok((parent, renamed))
}

fn open_directory(path: &Path) -> Result<Open> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(path, flags, Mode::empty()).context("cannot copy to", path.display())?;
    Ok(Open { directory, path: path.to_owned(), looks: None })
}

struct Placing<R> {
    from: Source<R>,
    open: Vec<Open>,
    mode_mask: u32,
}

impl<R: std::io::Read> Placing<R> {
    fn next(&mut self) -> Result<Item> {
        match self.from.next().context("cannot receive", "what is copied")? {
            Heard::Item(item) => Ok(item),
            Heard::Failed(error) => Err(error),
        }
    }

    fn all(&mut self, first: Item) -> Result<()> {
        let mut item = first;
        loop {
            match item {
                Item::Directory(name, looks) => self.directory(&name, looks)?,
                Item::File(name, looks) => self.file(&name, looks)?,
                Item::Link(name, looks, target) => self.link(&name, looks, &target)?,
                Item::Leave => self.leave()?,
                Item::End => return Ok(()),
                Item::Contents => {
                    return Err(Error::new("cannot receive", "what is copied", super::damaged()));
                }
            }
            item = self.next()?;
        }
    }

    fn leave(&mut self) -> Result<()> {
        match self.open.pop() {
            Some(Open { directory, path, looks: Some(looks) }) => {
                self.finish(&directory, looks).context("cannot finish", path.display())
            }
            _ => Ok(()),
        }
    }

    /// The directory entered last, and the path of `name` in it.
    fn place(&self, name: &OsStr) -> Result<(&OwnedFd, PathBuf)> {
        let last = self.open.last();
        let last = last.ok_or_else(|| Error::new("cannot receive", "what is copied", super::damaged()))?;
        Ok((&last.directory, last.path.join(name)))
    }

    fn directory(&mut self, name: &OsStr, looks: Looks) -> Result<()> {
        let (parent, path) = self.place(name)?;
        let made = match mkdirat(parent, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => false,
            done => done.map(|()| true).context("cannot make", path.display())?,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty()).context("cannot enter", path.display())?;
        if self.open.len() > MAX_DEPTH {
            return Err(Error::new("cannot copy to", path.display(), "too many directories in each other"));
        }
        self.open.push(Open { directory, path, looks: made.then_some(looks) });
        Ok(())
    }

    fn file(&mut self, name: &OsStr, looks: Looks) -> Result<()> {
        let (parent, path) = self.place(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let make = || openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(replace(parent, name, make).context("cannot write", path.display())?);
        let mut buffer = [0; CHUNK_BYTES];
        loop {
            match self.from.chunk(&mut buffer).context("cannot receive", path.display())?? {
                0 => break,
                len => file.write_all(&buffer[..len]).context("cannot write", path.display())?,
            }
        }
        self.finish(&file, looks).context("cannot finish", path.display())
    }

    fn link(&self, name: &OsStr, looks: Looks, target: &OsString) -> Result<()> {
        let (parent, path) = self.place(name)?;
        replace(parent, name, || symlinkat(target.as_os_str(), parent, name))
            .context("cannot link", path.display())?;
        let modified = TimeSpec::new(looks.seconds, looks.nanoseconds.into());
        utimensat(parent, name, &TimeSpec::UTIME_OMIT, &modified, UtimensatFlags::NoFollowSymlink)
            .context("cannot finish", path.display())
    }

    fn finish(&self, made: &impl AsFd, looks: Looks) -> nix::Result<()> {
        fchmod(made, Mode::from_bits_truncate(looks.mode & self.mode_mask))?;
        let modified = TimeSpec::new(looks.seconds, looks.nanoseconds.into());
        futimens(made, &TimeSpec::UTIME_OMIT, &modified)
    }
}

/// Makes something where nothing stays that was there; a directory stays, and is in the way.
fn replace<T>(parent: &OwnedFd, name: &OsStr, make: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
    match make() {
        Err(Errno::EEXIST) => {
            let found = fstatat(parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
                return Err(Errno::EISDIR);
            }
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            make()
        }
        made => made,
    }
}
