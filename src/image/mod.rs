//! Archives and images as root filesystems: unpacked once into the user's cache, and used from there.
//!
//! [`settled`] replaces in a configuration what is no directory of files by one, so that the container knows directories
//! only, and completes it by what an image says of itself. [`keep`] shows and frees what the cache holds.
//!
//! The parts: `tar`, `name`, `compression`, `digest` and `layout` understand formats; `source` and `open` find an image's
//! files; `tree` and `unpack` make what they say, and see that nothing leaves its root; `cache` keeps it; `watch` is for
//! whoever waits; `apply` makes a container of what an image says.

mod apply;
mod cache;
mod compression;
mod digest;
#[cfg(test)]
mod fixture;
mod keep;
mod layout;
mod name;
mod open;
mod source;
mod tar;
mod tree;
mod unpack;
mod watch;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::apply::Machine;
pub use self::cache::Lease;
use self::cache::{Cache, Stamp};
use self::compression::{Compression, decompressed};
use self::digest::{Digest, Digesting};
pub use self::keep::keep;
use self::layout::ImageConfig;
use self::open::Image;
use self::source::Source;
use self::unpack::{MAX_BYTES, Summary, Unpacking};
use self::watch::Watch;
use crate::config::{Config, Mapping, Overlay, Platform, RootFs};
use crate::error::{Error, Result};

/// How much is read at once; signals are heeded in between.
const READ_BYTES: usize = 128 << 10;
/// Enough to tell how a file is compressed.
const MAGIC_BYTES: u64 = 6;
const FORMATS: &str = "ROOTFS is a directory, a tar of one (plain, gzip or zstd), or an image: a directory or archive as \
                       `skopeo copy`, `podman save`, `buildah push` and `docker save` write them";

/// A configuration whose root filesystem is made of directories.
#[derive(Debug)]
pub struct Settled {
    /// The configuration.
    pub config: Config,
    /// What of the cache it uses; to be held until its container has ended.
    pub leases: Vec<Lease>,
}

/// What is looked for where several images may be.
#[derive(Debug)]
struct Wanted {
    name: Option<String>,
    platform: Platform,
}

/// A tree, and for an image its configuration.
type Found = (Lease, Option<ImageConfig>);
/// A digest of a tree, the text of an image's configuration, and what they stand for.
type Sighted = (Digest, Option<String>, Found);

/// Unpacks what `config` names as root filesystem, unless that is a directory of files already.
///
/// No thread may have been started before. A signal that would end rnet ends this with an error, whose exit code is 128
/// and its number; then, and after any other error, nothing stays behind. `maps_others` tells whether users other than
/// the caller can exist in a container here.
pub fn settled(config: &Config, maps_others: impl Fn() -> bool) -> Result<Settled> {
    let mut settled = Settled { config: config.clone(), leases: Vec::new() };
    let mut overlay = match &config.container.rootfs {
        RootFs::Directory(path) => Overlay { lower: vec![path.clone()], kept: None, owned: Vec::new() },
        RootFs::Overlay(overlay) => overlay.clone(),
        RootFs::HostCopy | RootFs::Empty | RootFs::Host => return Ok(settled),
    };
    let platform = config.image.platform.clone().unwrap_or_else(layout::this_machine);
    let mut directories = Vec::new();
    for (depth, path) in overlay.lower.iter().enumerate() {
        let Some((lease, image)) = found(path, &platform)? else {
            directories.push(path.clone());
            continue;
        };
        directories.push(lease.root().to_owned());
        if let Some(image) = image.filter(|_| depth == 0) {
            let machine = Machine { platform: layout::this_machine(), maps_others: maps_others() };
            for note in apply::apply(&mut settled.config, &image, &machine) {
                tracing::warn!("{note}");
            }
        }
        if depth == 0 && settled.config.container.identity.mapping != Mapping::Single {
            overlay.owned = lease.owned().map_err(unusable(path))?;
        }
        settled.leases.push(lease);
    }
    if !settled.leases.is_empty() {
        settled.config.container.rootfs = RootFs::Overlay(Overlay { lower: directories, ..overlay });
    }
    Ok(settled)
}

/// What `path` leads to, unless it is a directory of files or nothing at all.
fn found(path: &Path, platform: &Platform) -> Result<Option<Found>> {
    let Some((place, name)) = existing(path) else {
        return Ok(None);
    };
    let wanted = Wanted { name, platform: platform.clone() };
    let failed = |error: Error| error.hint(FORMATS);
    if place.is_file() {
        return of_file(&place, path, &wanted).map(Some).map_err(failed);
    }
    let source = Source::Directory(place);
    match (source.format(), &wanted.name) {
        (Some(_), _) => {
            let (.., found) = of_image(&Cache::open()?, &source, path, &wanted).map_err(failed)?;
            Ok(Some(found))
        }
        (None, None) => Ok(None),
        (None, Some(_)) => Err(failed(unusable(path)(io::Error::other("the directory is no image")))),
    }
}

/// `path` itself if it exists, else what of it does before a colon, and the name behind that.
fn existing(path: &Path) -> Option<(PathBuf, Option<String>)> {
    if path.exists() {
        return Some((path.to_owned(), None));
    }
    let text = path.as_os_str().as_bytes();
    let colons = text.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    colons.into_iter().find_map(|at| {
        let place = PathBuf::from(std::ffi::OsStr::from_bytes(&text[..at]));
        let name = std::str::from_utf8(&text[at + 1..]).ok()?;
        (place.exists() && !name.is_empty()).then(|| (place, Some(name.to_owned())))
    })
}

/// The tree of an archive, made now or before. `path` is what the user called it.
fn of_file(place: &Path, path: &Path, wanted: &Wanted) -> Result<Found> {
    let failed = unusable(path);
    let cache = Cache::open()?;
    let mut file = File::open(place).map_err(&failed)?;
    let metadata = file.metadata().map_err(&failed)?;
    let identity = cache::identity(&metadata, &format!("{:?} {}", wanted.name, wanted.platform));
    if let Some((lease, sight)) = identity.and_then(|identity| cache.recall(identity)) {
        let config = sight.config.as_deref().map(|text| ImageConfig::parse(text.as_bytes())).transpose();
        return Ok((lease, config.map_err(|cause| failed(io::Error::other(cause)))?));
    }
    let (digest, config, found) = match image_in(&mut file, &cache, path)? {
        Some(source) => of_image(&cache, &source, path, wanted)?,
        None if wanted.name.is_some() => {
            return Err(failed(io::Error::other("it is a root filesystem, in which no image has a name")));
        }
        None => of_root(&cache, &mut file, &Stamp::of(&metadata), path)?,
    };
    if let Some(identity) = identity {
        cache.remember(identity, digest, config);
    }
    Ok(found)
}

/// An image's tree and configuration; also what to remember of it.
fn of_image(cache: &Cache, source: &Source, path: &Path, wanted: &Wanted) -> Result<Sighted> {
    let format = source.format().ok_or_else(|| unusable(path)(io::Error::other("it is no image")))?;
    let image = Image::find(source, format, wanted).map_err(unusable(path))?;
    let lease = cache.tree(image.tree(), &path.display().to_string(), |root| {
        let mut watch = Watch::begin()?;
        image.unpack(source, path, root, &mut watch).map_err(|cause| watch.judge(unusable(path)(cause)))
    })?;
    Ok((image.tree(), Some(image.config_text), (lease, Some(image.config))))
}

/// The tree of an archive that is a root filesystem, and has the looks `before`; also what to remember of it.
fn of_root(cache: &Cache, file: &mut File, before: &Stamp, path: &Path) -> Result<Sighted> {
    let digest = digest(file, path)?;
    let lease = cache.tree(digest, &path.display().to_string(), |root| {
        let mut watch = Watch::begin()?;
        let unpacked = unpack_root(file, before, path, root, &mut watch);
        unpacked.map_err(|cause| watch.judge(unusable(path)(cause)))
    })?;
    Ok((digest, None, (lease, None)))
}

/// The image that `file` is; `None` if it is a root filesystem. A compressed one is uncompressed into the cache, into a
/// file without a name.
fn image_in(file: &mut File, cache: &Cache, path: &Path) -> Result<Option<Source>> {
    let mut watch = Watch::begin()?;
    let source = (|| {
        let mut magic = Vec::new();
        (&mut *file).take(MAGIC_BYTES).read_to_end(&mut magic)?;
        file.rewind()?;
        if Compression::of(&magic) == Compression::None {
            return Source::of_archive(file);
        }
        if !source::may_be_image(decompressed(BufReader::new(&mut *file))?)? {
            return Ok(None);
        }
        file.rewind()?;
        watch.tell("uncompressing", path, file.metadata()?.len());
        let mut plain = cache.scratch()?;
        let input = decompressed(BufReader::with_capacity(READ_BYTES, watch.over(file)))?;
        io::copy(&mut input.take(MAX_BYTES), &mut plain)?;
        Source::of_archive(&plain)
    })();
    source
        .map(|source| source.filter(|source| source.format().is_some()))
        .map_err(|cause| watch.judge(unusable(path)(cause)))
}

/// Unpacks a root filesystem, whose archive had the looks `before` when its digest was taken.
fn unpack_root(
    file: &mut File,
    before: &Stamp,
    path: &Path,
    root: &Path,
    watch: &mut Watch,
) -> io::Result<Summary> {
    file.rewind()?;
    watch.tell("unpacking", path, file.metadata()?.len());
    let mut unpacking = Unpacking::new(root)?;
    let input = watch.over(&mut *file);
    unpacking.root(decompressed(BufReader::with_capacity(READ_BYTES, input))?)?;
    if Stamp::of(&file.metadata()?) != *before {
        return Err(io::Error::other("it was changed meanwhile"));
    }
    unpacking.finish()
}

fn digest(file: &mut File, path: &Path) -> Result<Digest> {
    let mut watch = Watch::begin()?;
    let digest = file.rewind().and_then(|()| file.metadata()).and_then(|metadata| {
        watch.tell("reading", path, metadata.len());
        Digesting::new(watch.over(file)).finish()
    });
    digest.map(|(digest, _)| digest).map_err(|cause| watch.judge(unusable(path)(cause)))
}

fn unusable(path: &Path) -> impl Fn(io::Error) -> Error {
    move |cause| Error::new("cannot unpack", path.display(), cause)
}
