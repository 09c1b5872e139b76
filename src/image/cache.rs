//! Trees that have been unpacked, in the user's cache: each by a digest of what it was made of.
//!
//! ```text
//! ~/.cache/rnet/images/        private to the user: there are set-id files below
//!   trees/DIGEST/              locked by whoever makes the tree, and shared by those who use it
//!     root/                    the tree, complete; nobody changes it
//!     about.json               what it was made of; its time is when it was last used
//!     owned                    what of it is not root's: UID GID PATH and a NUL byte each
//!     draft/                   a tree on its way
//!   seen/DIGEST                what became of a file with this name, size and times
//! ```
//!
//! What is called `root` is complete: it is made beside and renamed into place. What a killed rnet leaves is removed by
//! the next one that makes a tree.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::tree::Belonging;
use super::unpack::Summary;
use crate::config::Owned;
use crate::disk;
use crate::error::{Error, Result};

/// A file that was changed so recently may change again within the tick of its clock.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Times that a tree may vanish between its making and its use before this counts as a failure.
const ATTEMPTS: usize = 16;
const ROOT: &str = "root";
const DRAFT: &str = "draft";
const ABOUT: &str = "about.json";
const OWNED: &str = "owned";

/// The cache of this user.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    trees: PathBuf,
    seen: PathBuf,
}

/// A tree in use: it stays as long as this lives.
#[derive(Debug)]
pub struct Lease {
    root: PathBuf,
    _lock: Flock<File>,
}

/// What a tree was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The file or directory, as the user called it, with the name of an image in it.
    pub(super) source: String,
    /// When, in seconds since 1970.
    pub(super) created: u64,
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

/// What a file was found to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sight {
    tree: String,
    /// The image's configuration, for one that has it.
    pub(super) config: Option<String>,
}

impl Cache {
    /// The user's cache, made if missing.
    pub(super) fn open() -> Result<Self> {
        let failed = |cause: io::Error| {
            let error = Error::new("cannot use", "the cache of images", cause);
            error.hint("set XDG_CACHE_HOME to a directory of yours on a disk")
        };
        let nowhere = || io::Error::other("neither XDG_CACHE_HOME nor HOME is set");
        Self::at(&disk::cache().ok_or_else(nowhere).map_err(failed)?.join("images")).map_err(failed)
    }

    fn at(base: &Path) -> io::Result<Self> {
        let base = disk::own_directory(base)?;
        let (trees, seen) = (base.join("trees"), base.join("seen"));
        Ok(Self { trees: disk::own_directory(&trees)?, seen: disk::own_directory(&seen)? })
    }

    /// The tree of `digest`, made by `make` in an empty directory unless it is there. Others who want it meanwhile wait.
    pub(super) fn tree(
        &self,
        digest: Digest,
        source: &str,
        mut make: impl FnMut(&Path) -> Result<Summary>,
    ) -> Result<Lease> {
        let failed = |cause| Error::new("cannot use", self.trees.display(), cause);
        for _ in 0..ATTEMPTS {
            if let Some(lease) = self.existing(digest) {
                return Ok(lease);
            }
            let place = Place::claim(&self.trees.join(digest.hex())).map_err(failed)?;
            if let Some(place) = place {
                self.sweep();
                place.fill(source, &mut make)?;
            }
        }
        Err(failed(io::Error::other("what is put there vanishes")))
    }

    /// The tree of `digest`, if it is there.
    pub(super) fn existing(&self, digest: Digest) -> Option<Lease> {
        let place = self.trees.join(digest.hex());
        let root = place.join(ROOT);
        // Before the lock, which whoever makes it holds for long.
        root.is_dir().then_some(())?;
        let lock = disk::lock_as(&place, FlockArg::LockShared)?;
        root.is_dir().then_some(())?;
        let now = FileTimes::new().set_modified(SystemTime::now());
        // Only the order in which trees are freed depends on it.
        let _ = File::open(place.join(ABOUT)).and_then(|about| about.set_times(now));
        Some(Lease { root, _lock: lock })
    }

    /// What was found in a file that looks like this, if its tree is still there.
    pub(super) fn recall(&self, identity: Digest) -> Option<(Lease, Sight)> {
        let text = fs::read(self.seen.join(identity.hex())).ok()?;
        let sight: Sight = serde_json::from_slice(&text).ok()?;
        let lease = self.existing(Digest::parse_hex(&sight.tree)?)?;
        Some((lease, sight))
    }

    /// Remembers what was found in a file.
    pub(super) fn remember(&self, identity: Digest, tree: Digest, config: Option<String>) {
        let sight = Sight { tree: tree.hex(), config };
        let (draft, place) =
            (self.seen.join(format!("draft-{}", std::process::id())), self.seen.join(identity.hex()));
        let text = serde_json::to_vec(&sight).map_err(io::Error::from);
        let written = text.and_then(|text| fs::write(&draft, text)).and_then(|()| fs::rename(&draft, place));
        // The next start only takes longer.
        if let Err(cause) = written {
            tracing::debug!("cannot write {}: {cause}", draft.display());
        }
    }

    /// All trees, by digest.
    pub(super) fn list(&self) -> Vec<Kept> {
        let mut found: Vec<Kept> = children(&self.trees).filter_map(|place| Kept::read(&place)).collect();
        found.sort_by_key(|kept| kept.digest);
        found
    }

    /// Removes a tree; false if somebody uses it.
    pub(super) fn remove(&self, digest: Digest) -> io::Result<bool> {
        let place = self.trees.join(digest.hex());
        let Some(_lock) = disk::lock(&place) else {
            return Ok(!place.exists());
        };
        // What is called root is complete.
        fs::rename(place.join(ROOT), place.join(DRAFT))?;
        disk::remove(&place)?;
        Ok(true)
    }

    /// An empty file that goes with its descriptor.
    pub(super) fn scratch(&self) -> io::Result<File> {
        let path = self.seen.join(format!("scratch-{}", std::process::id()));
        let file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        match fs::remove_file(path) {
            // Another rnet has swept it away.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(file),
            removed => removed.map(|()| file),
        }
    }

    /// Removes what killed processes have left, and memories of trees that are gone.
    pub(super) fn sweep(&self) {
        for place in children(&self.trees).filter(|place| !place.join(ROOT).is_dir()) {
            if let Some(_lock) = disk::lock(&place) {
                let _ = disk::remove(&place);
            }
        }
        for place in children(&self.seen) {
            let sight = fs::read(&place).ok().and_then(|text| serde_json::from_slice::<Sight>(&text).ok());
            if !sight.is_some_and(|sight| self.trees.join(sight.tree).is_dir()) {
                let _ = fs::remove_file(place);
            }
        }
    }
}

impl Lease {
    /// The directory of the tree, which must not be changed.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What in it is not root's.
    pub(super) fn owned(&self) -> io::Result<Vec<Owned>> {
        let text = fs::read(self.root.with_file_name(OWNED))?;
        let records = text.split(|byte| *byte == 0).filter(|record| !record.is_empty());
        records.map(|record| read(record).ok_or_else(|| io::ErrorKind::InvalidData.into())).collect()
    }
}

/// A tree in the cache.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) digest: Digest,
    pub(super) about: About,
    /// When it was last used, in seconds since 1970.
    pub(super) used: u64,
    /// A container uses it now.
    pub(super) in_use: bool,
}

impl Kept {
    fn read(place: &Path) -> Option<Self> {
        let digest = Digest::parse_hex(place.file_name()?.to_str()?)?;
        let path = place.join(ABOUT);
        let about = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let used = fs::metadata(path).ok()?.mtime().try_into().ok()?;
        // A lock that can be had goes again at once.
        Some(Self { digest, about, used, in_use: disk::lock(place).is_none() })
    }
}

/// The place of a tree that is missing, ours alone.
struct Place {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    /// Waits for others who are at it. `None` if things are different after that.
    fn claim(path: &Path) -> io::Result<Option<Self>> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
            _ => {}
        }
        let lock = disk::lock(path).or_else(|| {
            tracing::info!("another rnet unpacks the same; waiting for it");
            disk::lock_as(path, FlockArg::LockExclusive)
        });
        let Some(lock) = lock.filter(|_| !path.join(ROOT).exists()) else {
            return Ok(None);
        };
        Ok(Some(Self { path: path.to_owned(), _lock: lock }))
    }

    /// Makes the tree; nothing stays if that fails.
    fn fill(self, source: &str, make: &mut impl FnMut(&Path) -> Result<Summary>) -> Result<()> {
        let draft = self.path.join(DRAFT);
        let failed = |cause| Error::new("cannot write", self.path.display(), cause);
        let made = (|| {
            // What somebody has left who was killed.
            if draft.exists() {
                disk::remove(&draft).map_err(failed)?;
            }
            DirBuilder::new().mode(0o700).create(&draft).map_err(failed)?;
            tracing::info!("unpacking {source}");
            let Summary { entries, bytes, owned } = make(&draft)?;
            fs::write(self.path.join(OWNED), written(&owned)).map_err(failed)?;
            let about = About { source: source.to_owned(), created: now(), bytes, entries };
            let text = serde_json::to_vec(&about).map_err(|cause| failed(cause.into()))?;
            fs::write(self.path.join(ABOUT), text).map_err(failed)?;
            fs::rename(&draft, self.path.join(ROOT)).map_err(failed)
        })();
        if made.is_err()
            && let Err(cause) = disk::remove(&self.path)
        {
            tracing::warn!("cannot remove {}: {cause}", self.path.display());
        }
        made
    }
}

fn written(owned: &[Belonging]) -> Vec<u8> {
    let record = |Belonging { path, owner, .. }: &Belonging| {
        [format!("{} {} ", owner.uid, owner.gid).as_bytes(), path.as_os_str().as_bytes(), &[0]].concat()
    };
    owned.iter().flat_map(record).collect()
}

fn read(record: &[u8]) -> Option<Owned> {
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let mut id = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (uid, gid) = (id()?, id()?);
    Some(Owned { path: Path::new("/").join(OsStr::from_bytes(parts.next()?)), uid, gid })
}

/// What tells a file from another one, and from itself when it was different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(String);

impl Stamp {
    pub(super) fn of(file: &Metadata) -> Self {
        let (changed, modified) = ((file.ctime(), file.ctime_nsec()), (file.mtime(), file.mtime_nsec()));
        Self(format!("{}:{} {} {changed:?} {modified:?}", file.dev(), file.ino(), file.size()))
    }
}

/// What a file with these looks is remembered by; `None` for one that may be changing. `wanted` is what is looked for in
/// it.
pub(super) fn identity(file: &Metadata, wanted: &str) -> Option<Digest> {
    let changed = UNIX_EPOCH + Duration::from_secs(file.ctime().max(file.mtime()).try_into().unwrap_or(0));
    let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED_AFTER);
    settled.then(|| Digest::of(format!("{} {wanted}", Stamp::of(file).0).as_bytes()))
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::tar::Owner;
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let base = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::at(&base.path().join("images")).expect("made");
        (base, cache)
    }

    fn fill(root: &Path) -> Result<Summary> {
        fs::write(root.join("file"), "text").expect("written");
        let belonging =
            |path: &str, uid, gid| Belonging { path: path.into(), owner: Owner { uid, gid }, size: 0 };
        let owned = vec![belonging("a b", 1, 2), belonging("c\nd", 3_000_000, 0)];
        Ok(Summary { entries: 1, bytes: 4, owned })
    }

    #[test]
    fn a_tree_is_made_once_and_remembered() {
        let (_base, cache) = cache();
        let (tree, file) = (Digest::of(b"tree"), Digest::of(b"file"));
        let lease = cache.tree(tree, "x.tar", fill).expect("made");
        assert!(cache.tree(tree, "x.tar", |_| panic!("it is there")).is_ok());
        let owned = lease.owned().expect("written");
        assert_eq!(owned[0], Owned { path: "/a b".into(), uid: 1, gid: 2 });
        assert_eq!(owned[1], Owned { path: "/c\nd".into(), uid: 3_000_000, gid: 0 });
        assert!(cache.recall(file).is_none());
        cache.remember(file, tree, Some("{}".into()));
        let (again, sight) = cache.recall(file).expect("remembered");
        assert_eq!((again.root(), sight.config.as_deref()), (lease.root(), Some("{}")));
    }

    #[test]
    fn failure_leaves_nothing() {
        let (_base, cache) = cache();
        let made = cache.tree(Digest::of(b"tree"), "x.tar", |root| {
            fill(root)?;
            Err(Error::new("cannot", "go", "on"))
        });
        assert!(made.is_err());
        assert_eq!(children(&cache.trees).count(), 0);
    }

    #[test]
    fn what_is_used_stays_and_what_is_left_goes() {
        let (_base, cache) = cache();
        let digest = Digest::of(b"tree");
        let lease = cache.tree(digest, "x.tar", fill).expect("made");
        fs::create_dir_all(cache.trees.join(Digest::of(b"dead").hex()).join("draft/d")).expect("made");
        fs::write(cache.seen.join("scratch-1"), "half").expect("written");
        cache.sweep();
        assert_eq!((children(&cache.trees).count(), children(&cache.seen).count()), (1, 0));
        assert!(cache.list()[0].in_use && !cache.remove(digest).expect("refused"));
        drop(lease);
        assert!(!cache.list()[0].in_use && cache.remove(digest).expect("removed"));
        assert!(cache.list().is_empty() && cache.existing(digest).is_none());
    }
}
