//! A directory tree made by the names of archives, none of which can reach outside.
//!
//! Parents are resolved by the kernel as if the tree's top were the root (openat2(2), RESOLVE_IN_ROOT), so a symbolic link
//! leads to where it would lead in the container. Nothing that stands at a name is followed or written through: it is
//! removed first, unless both it and what comes are directories. While a tree is made its directories are open to
//! their owner and closed to everybody else; they get their modes and times at the end, the deepest first. Everything
//! belongs to the caller.
//!
//! A tree is at most [`MAX_DEPTH`] directories deep, however links lead there, so that it can be removed again.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
    mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, mkfifoat, symlinkat, unlinkat};

use super::name::Name;
use super::tar::{Modified, Owner};

/// Directories within each other: each takes a descriptor while the tree is walked.
const MAX_DEPTH: u32 = 200;
/// The kernel gives up resolving `..` when anything was renamed meanwhile, wherever on the system.
const RESOLVE_ATTEMPTS: usize = 64;
/// Mode of directories that no entry describes.
const USUAL_MODE: u32 = 0o755;

/// A tree under construction.
pub(super) struct Tree {
    top: OwnedFd,
    /// By inode number: all are on one filesystem.
    directories: HashMap<u64, Directory>,
    /// What the current layer has put there, as inode number of the directory and name; `None` for a first layer,
    /// under which nothing lies.
    fresh: Option<HashSet<(u64, OsString)>>,
    /// Owners other than root, by inode number.
    owners: HashMap<u64, Owner>,
}

/// Mode, time and owner of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    pub(super) mode: u32,
    pub(super) modified: Modified,
    pub(super) owner: Owner,
}

/// What has become of a tree.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// On disk.
    pub(super) bytes: u64,
    /// What is not root's, parents first; hard links once.
    pub(super) owned: Vec<Belonging>,
}

/// Something that is not root's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Belonging {
    /// Relative to the top.
    pub(super) path: PathBuf,
    pub(super) owner: Owner,
    /// Bytes of a file; 0 for anything else.
    pub(super) size: u64,
}

struct Directory {
    depth: u32,
    /// Where it is: inode number of the directory and name; the top is nowhere.
    place: Option<(u64, OsString)>,
    /// `None` while only things in it have been named.
    looks: Option<Looks>,
}

/// A directory in the tree and a name in it.
struct Place<'a> {
    directory: OwnedFd,
    inode: u64,
    name: &'a OsStr,
}

impl Tree {
    /// Begins one at `path`, an empty directory of the caller's.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let top = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let inode = fstat(&top)?.st_ino;
        let directories = HashMap::from([(inode, Directory { depth: 0, place: None, looks: None })]);
        Ok(Self { top, directories, fresh: None, owners: HashMap::new() })
    }

    /// From now on comes what lies over what is there.
    pub(super) fn next_layer(&mut self) {
        self.fresh = Some(HashSet::new());
    }

    /// Makes a directory, or takes over the one that is there; open for reading.
    pub(super) fn directory(&mut self, name: &Name, looks: Looks) -> io::Result<File> {
        let directory = match name {
            Name::Root => self.top.try_clone()?,
            Name::Below { .. } => {
                let place = self.place(name)?;
                self.make_directory(&place)?
            }
        };
        let inode = fstat(&directory)?.st_ino;
        if let Some(known) = self.directories.get_mut(&inode) {
            known.looks = Some(looks);
        }
        self.note_owner(inode, looks.owner);
        Ok(directory.into())
    }

    /// Makes an empty file, open for writing and only to the caller. [`Self::finish_file`] gives it its looks.
    pub(super) fn file(&mut self, name: &Name) -> io::Result<File> {
        let place = self.place(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            self.put(&place, || openat(&place.directory, place.name, flags, Mode::S_IRUSR | Mode::S_IWUSR))?;
        Ok(file.into())
    }

    /// Gives a file its mode and time, once everything is in it.
    pub(super) fn finish_file(&mut self, file: &File, looks: Looks) -> io::Result<()> {
        if looks.owner != Owner::default() {
            self.note_owner(fstat(file)?.st_ino, looks.owner);
        }
        set_looks(file, looks)
    }

    /// Makes a symbolic link to whatever `target` says.
    pub(super) fn symlink(&mut self, name: &Name, target: &[u8], looks: Looks) -> io::Result<()> {
        let place = self.place(name)?;
        self.put(&place, || symlinkat(OsStr::from_bytes(target), &place.directory, place.name))?;
        self.finish_place(&place, looks)
    }

    /// Makes a named pipe.
    pub(super) fn fifo(&mut self, name: &Name, looks: Looks) -> io::Result<()> {
        let place = self.place(name)?;
        self.put(&place, || mkfifoat(&place.directory, place.name, Mode::S_IRUSR))?;
        // The umask has had its say.
        let mode = Mode::from_bits_truncate(looks.mode);
        fchmodat(&place.directory, place.name, mode, FchmodatFlags::FollowSymlink)?;
        self.finish_place(&place, looks)
    }

    /// Makes a hard link to `target`, which is there and no directory.
    pub(super) fn hard_link(&mut self, name: &Name, target: &Name) -> io::Result<()> {
        let source = self.existing(target)?;
        let place = self.place(name)?;
        if (source.inode, source.name) == (place.inode, place.name) {
            return Ok(());
        }
        let link =
            || linkat(&source.directory, source.name, &place.directory, place.name, LinkatFlags::empty());
        self.put(&place, link)
    }

    /// Removes what lies at `name`, if anything does.
    pub(super) fn remove(&mut self, name: &Name) -> io::Result<()> {
        match self.existing(name) {
            Ok(place) => {
                self.remove_at(&place.directory, place.name)?;
                if let Some(fresh) = &mut self.fresh {
                    fresh.remove(&(place.inode, place.name.to_owned()));
                }
                Ok(())
            }
            Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// Removes what earlier layers have put below `name`.
    pub(super) fn clear(&mut self, name: &Name) -> io::Result<()> {
        match self.resolve(&name.path(), OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => Ok(()),
            found => self.clear_stale(&found?),
        }
    }

    /// Gives the directories their looks.
    pub(super) fn finish(mut self) -> io::Result<Finished> {
        let (top, mut finished) = (self.top.try_clone()?, Finished::default());
        self.settle(&top, Path::new(""), &mut finished)?;
        Ok(finished)
    }

    /// The place of `name`, with its parents made if missing.
    fn place<'a>(&mut self, name: &'a Name) -> io::Result<Place<'a>> {
        let Name::Below { parent, last } = name else {
            return Err(io::Error::other("it would take the root's place"));
        };
        let directory = match self.resolve(parent, OFlag::O_PATH) {
            Err(Errno::ENOENT) => self.make_parents(parent)?,
            found => found?,
        };
        let inode = fstat(&directory)?.st_ino;
        Ok(Place { directory, inode, name: last })
    }

    /// The place of `name` without making anything.
    fn existing<'a>(&self, name: &'a Name) -> io::Result<Place<'a>> {
        let Name::Below { parent, last } = name else {
            return Err(Errno::EISDIR.into());
        };
        let directory = self.resolve(parent, OFlag::O_PATH)?;
        let inode = fstat(&directory)?.st_ino;
        fstatat(&directory, last.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(Place { directory, inode, name: last })
    }

    /// Opens a directory of the tree.
    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut attempts = (0..RESOLVE_ATTEMPTS).map(|_| openat2(&self.top, path, how));
        let done = |found: &nix::Result<OwnedFd>| !matches!(found, Err(Errno::EAGAIN));
        attempts.find(done).unwrap_or(Err(Errno::EAGAIN))
    }

    fn make_parents(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let mut reached = self.top.try_clone()?;
        let mut so_far = PathBuf::new();
        for part in path.iter() {
            so_far.push(part);
            reached = match self.resolve(&so_far, OFlag::O_PATH) {
                Err(Errno::ENOENT) if !exists(&reached, part) => {
                    let inode = fstat(&reached)?.st_ino;
                    self.make_directory(&Place { directory: reached, inode, name: part })?
                }
                found => found?,
            };
        }
        Ok(reached)
    }

    fn make_directory(&mut self, place: &Place<'_>) -> io::Result<OwnedFd> {
        let depth = self.directories.get(&place.inode).map_or(0, |parent| parent.depth) + 1;
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} directories in each other")));
        }
        let there = fstatat(&place.directory, place.name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let stays = there.is_ok_and(|found| is_directory(&found));
        if stays {
            self.note_fresh(place);
        } else {
            self.put(place, || mkdirat(&place.directory, place.name, Mode::S_IRWXU))?;
        }
        let directory = open_directory(&place.directory, place.name)?;
        if !stays {
            let known = Directory { depth, place: Some((place.inode, place.name.to_owned())), looks: None };
            self.directories.insert(fstat(&directory)?.st_ino, known);
        }
        Ok(directory)
    }

    /// Makes something at `place`, where nothing stays that was there.
    fn put<T>(&mut self, place: &Place<'_>, make: impl Fn() -> nix::Result<T>) -> io::Result<T> {
        let made = match make() {
            Err(Errno::EEXIST) => {
                self.remove_at(&place.directory, place.name)?;
                make()
            }
            made => made,
        }?;
        self.note_fresh(place);
        Ok(made)
    }

    /// What is at `place` belongs to the current layer, and with it the directories that it is in.
    fn note_fresh(&mut self, place: &Place<'_>) {
        let Some(fresh) = &mut self.fresh else {
            return;
        };
        let mut next = Some((place.inode, place.name.to_owned()));
        while let Some(place) = next {
            let above = self.directories.get(&place.0).and_then(|directory| directory.place.clone());
            next = if fresh.insert(place) { above } else { None };
        }
    }

    fn remove_at(&mut self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !is_directory(&found) {
            if found.st_nlink <= 1 {
                self.owners.remove(&found.st_ino);
            }
            return Ok(unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?);
        }
        let inner = open_directory(directory, name)?;
        for (name, _) in entries(&inner)? {
            self.remove_at(&inner, OsStr::from_bytes(name.as_bytes()))?;
        }
        self.directories.remove(&found.st_ino);
        self.owners.remove(&found.st_ino);
        Ok(unlinkat(directory, name, UnlinkatFlags::RemoveDir)?)
    }

    fn clear_stale(&mut self, directory: &OwnedFd) -> io::Result<()> {
        let inode = fstat(directory)?.st_ino;
        for (name, is_directory) in entries(directory)? {
            let name = OsStr::from_bytes(name.as_bytes());
            let stays = self.fresh.as_ref().is_none_or(|fresh| fresh.contains(&(inode, name.to_owned())));
            if !stays {
                self.remove_at(directory, name)?;
            } else if is_directory {
                self.clear_stale(&open_directory(directory, name)?)?;
            }
        }
        Ok(())
    }

    /// Gives `directory` at `path` its looks, after everything below it.
    fn settle(&mut self, directory: &OwnedFd, path: &Path, finished: &mut Finished) -> io::Result<()> {
        let itself = fstat(directory)?;
        finished.bytes += on_disk(&itself);
        self.tell_owner(&itself, path, finished);
        for (name, is_directory) in entries(directory)? {
            let name = OsStr::from_bytes(name.as_bytes());
            let path = path.join(name);
            if is_directory {
                self.settle(&open_directory(directory, name)?, &path, finished)?;
            } else {
                let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                finished.bytes += on_disk(&found) / found.st_nlink.max(1);
                self.tell_owner(&found, &path, finished);
            }
        }
        let known = self.directories.get(&itself.st_ino).and_then(|directory| directory.looks);
        match known {
            Some(looks) => set_looks(directory, looks),
            None => Ok(fchmod(directory, Mode::from_bits_truncate(USUAL_MODE))?),
        }
    }

    fn tell_owner(&mut self, found: &FileStat, path: &Path, finished: &mut Finished) {
        // Taken out, so that of several hard links one is told.
        if let Some(owner) = self.owners.remove(&found.st_ino) {
            let is_file = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
            let size = if is_file { found.st_size.try_into().unwrap_or(0) } else { 0 };
            finished.owned.push(Belonging { path: path.to_owned(), owner, size });
        }
    }

    fn note_owner(&mut self, inode: u64, owner: Owner) {
        match owner == Owner::default() {
            true => self.owners.remove(&inode),
            false => self.owners.insert(inode, owner),
        };
    }

    /// Gives what cannot be opened its time and owner.
    fn finish_place(&mut self, place: &Place<'_>, looks: Looks) -> io::Result<()> {
        let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
        if looks.owner != Owner::default() {
            self.note_owner(fstatat(&place.directory, place.name, nofollow)?.st_ino, looks.owner);
        }
        let time = time(looks.modified);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        Ok(utimensat(&place.directory, place.name, &time, &time, nofollow)?)
    }
}

fn set_looks(fd: impl AsFd, looks: Looks) -> io::Result<()> {
    fchmod(&fd, Mode::from_bits_truncate(looks.mode))?;
    let time = time(looks.modified);
    Ok(futimens(&fd, &time, &time)?)
}

fn time(modified: Modified) -> TimeSpec {
    TimeSpec::new(modified.seconds, modified.nanoseconds.into())
}

fn exists(directory: &OwnedFd, name: &OsStr) -> bool {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Names in a directory, and whether they are of directories.
fn entries(directory: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let own = openat(directory, ".", flags, Mode::empty())?;
    let mut found = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            Some(kind) => kind == nix::dir::Type::Directory,
            None => is_directory(&fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?),
        };
        found.push((name.to_owned(), is_directory));
    }
    Ok(found)
}

fn is_directory(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn on_disk(found: &FileStat) -> u64 {
    u64::try_from(found.st_blocks).unwrap_or_default() * 512
}
