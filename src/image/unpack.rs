//! Archives become trees: every entry is judged, and then put in its place.
//!
//! Refused are names and hard links that leave the root, devices, kinds of entries that are not known, more than
//! [`MAX_ENTRIES`] entries and more than [`MAX_BYTES`]. Leaving them out would give a tree that is not the one in the
//! archive. Kept are modes with their set-id bits, times, holes, hard links and `user.` attributes. Owners other than root
//! are told, as the caller cannot give anything away. Not kept are other attributes, and `user.overlay.` ones, which
//! would steer the overlay that the tree becomes a part of.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::name::{Meaning, Name};
use super::tar::{self, Entry, Kind};
use super::tree::{Belonging, Finished, Looks, Tree};
use crate::sys::mount::set_attribute;

/// Most bytes of a tree, without holes: of what its archives hold uncompressed too.
pub(super) const MAX_BYTES: u64 = 64 << 30;
/// Most entries of its archives together.
const MAX_ENTRIES: u64 = 4_000_000;
/// Files, links and directories that are given to others than root at every start.
const MAX_GIVEN: usize = 50_000;
/// Bytes of the files among them, which an overlay copies.
const MAX_GIVEN_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 128 << 10;

/// A tree that is being unpacked.
pub(super) struct Unpacking {
    tree: Tree,
    buffer: Vec<u8>,
    layers: usize,
    entries: u64,
    /// Bytes that may still come.
    bytes_left: u64,
    /// Some attributes could not be kept.
    attributes_lost: bool,
}

/// What became of archives.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) entries: u64,
    /// On disk.
    pub(super) bytes: u64,
    /// What shall be given to others than root.
    pub(super) owned: Vec<Belonging>,
}

impl Unpacking {
    /// Into `path`, an empty directory of the caller's.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            tree: Tree::new(path)?,
            buffer: vec![0; BUFFER_BYTES],
            layers: 0,
            entries: 0,
            bytes_left: MAX_BYTES,
            attributes_lost: false,
        })
    }

    /// Unpacks a root filesystem, uncompressed; reads to the end of `input`.
    pub(super) fn root(&mut self, input: impl Read) -> io::Result<()> {
        self.archive(input, |path| Name::of(path).map(Meaning::Present))?;
        if self.entries == 0 {
            return Err(io::Error::other("it holds nothing"));
        }
        Ok(())
    }

    /// Unpacks an image's layer, uncompressed, over those before; reads to the end of `input`.
    pub(super) fn layer(&mut self, input: impl Read) -> io::Result<()> {
        if self.layers > 0 {
            self.tree.next_layer();
        }
        self.layers += 1;
        self.archive(input, Name::in_layer)
    }

    /// Gives the tree its final looks.
    pub(super) fn finish(self) -> io::Result<Summary> {
        if self.attributes_lost {
            tracing::warn!(
                "the cache's filesystem takes no user extended attributes; those of the archive are lost"
            );
        }
        let Finished { bytes, owned } = self.tree.finish()?;
        Ok(Summary { entries: self.entries, bytes, owned: affordable(owned) })
    }

    fn archive(&mut self, input: impl Read, meaning: fn(&[u8]) -> Option<Meaning>) -> io::Result<()> {
        let bound = self.bytes_left + 1;
        let mut archive = tar::Reader::new(input.take(bound));
        let done = self.archived(&mut archive, meaning);
        let mut rest = archive.into_inner();
        // Compressed streams have their checksums behind the archive's end.
        let done = done.and_then(|()| io::copy(&mut rest, &mut io::sink()).map(drop));
        if rest.limit() == 0 {
            return Err(io::Error::other(format!("it holds more than {} GiB", MAX_BYTES >> 30)));
        }
        self.bytes_left = rest.limit() - 1;
        done
    }

    fn archived<R: Read>(
        &mut self,
        archive: &mut tar::Reader<R>,
        meaning: fn(&[u8]) -> Option<Meaning>,
    ) -> io::Result<()> {
        while let Some(entry) = archive.next()? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("it holds more than {MAX_ENTRIES} entries")));
            }
            let place = || in_it(&entry.path);
            let meaning = meaning(&entry.path).ok_or_else(|| refused(place(), "leaves the root"))?;
            match meaning {
                Meaning::Present(name) => self.entry(&name, &entry, archive),
                Meaning::Absent(name) => self.tree.remove(&name),
                Meaning::Alone(name) => self.tree.clear(&name),
                Meaning::Nothing => Ok(()),
            }
            .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", place())))?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, name: &Name, entry: &Entry, archive: &mut tar::Reader<R>) -> io::Result<()> {
        let looks = Looks { mode: entry.mode, modified: entry.modified, owner: entry.owner };
        match entry.kind {
            Kind::File => {
                let file = self.tree.file(name)?;
                self.fill(&file, entry, archive)?;
                self.attributes(&file, entry)?;
                self.tree.finish_file(&file, looks)
            }
            Kind::Directory => {
                let directory = self.tree.directory(name, looks)?;
                self.attributes(&directory, entry)
            }
            Kind::Symlink => self.tree.symlink(name, &entry.link, looks),
            Kind::HardLink => self.hard_link(name, &entry.link),
            Kind::Fifo => self.tree.fifo(name, looks),
            Kind::Device => Err(io::Error::other(
                "it is a device, which only the host's root can make; every container gets its own /dev",
            )),
            Kind::Other(kind) => {
                Err(io::Error::other(format!("it is of a kind that is not known: {}", kind.escape_ascii())))
            }
        }
    }

    fn hard_link(&mut self, name: &Name, link: &[u8]) -> io::Result<()> {
        let failed = |cause: &dyn std::fmt::Display| {
            io::Error::other(format!("it is a hard link to {}: {cause}", String::from_utf8_lossy(link)))
        };
        let target = Name::of(link).ok_or_else(|| failed(&"that leaves the root"))?;
        self.tree.hard_link(name, &target).map_err(|cause| failed(&cause))
    }

    /// Writes the content of a file, and leaves its holes.
    fn fill<R: Read>(
        &mut self,
        mut file: &File,
        entry: &Entry,
        archive: &mut tar::Reader<R>,
    ) -> io::Result<()> {
        for segment in &entry.segments {
            if segment.offset > 0 {
                file.seek(SeekFrom::Start(segment.offset))?;
            }
            let mut left = segment.length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let read = archive.read(&mut self.buffer[..most])?;
                file.write_all(&self.buffer[..read])?;
                left -= read as u64;
            }
        }
        let end = entry.segments.last().map_or(0, |last| last.offset + last.length);
        if end == entry.size { Ok(()) } else { file.set_len(entry.size) }
    }

    fn attributes(&mut self, file: &File, entry: &Entry) -> io::Result<()> {
        let kept = |name: &str| name.starts_with("user.") && !name.starts_with("user.overlay.");
        for (name, value) in entry.attributes.iter().filter(|(name, _)| kept(name)) {
            match set_attribute(file, name, value) {
                Err(cause) if cause.kind() == io::ErrorKind::Unsupported => self.attributes_lost = true,
                done => done?,
            }
        }
        Ok(())
    }
}

/// All directories, and files as long as they are few and small: each is copied at every start.
fn affordable(owned: Vec<Belonging>) -> Vec<Belonging> {
    // An archive that an ordinary user has made of his own files means them to be root's.
    let top = owned.iter().find(|belonging| belonging.path.as_os_str().is_empty()).map(|top| top.owner);
    let owned: Vec<_> = owned.into_iter().filter(|belonging| Some(belonging.owner) != top).collect();
    let all = owned.len();
    let mut bytes_left = MAX_GIVEN_BYTES;
    let mut fits = |belonging: &Belonging| {
        let fits = belonging.size <= bytes_left;
        bytes_left -= if fits { belonging.size } else { 0 };
        fits
    };
    let given: Vec<_> = owned.into_iter().filter(|belonging| fits(belonging)).take(MAX_GIVEN).collect();
    if given.len() < all {
        tracing::warn!(
            "{} files that belong to others than root stay root's: they are too large",
            all - given.len()
        );
    }
    given
}

fn in_it(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

fn refused(place: Cow<'_, str>, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{place} in it {why}"))
}

#[cfg(test)]
mod tests;
