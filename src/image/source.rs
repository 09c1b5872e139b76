//! Where the files of an image are: in a directory, or in an archive, which is a file with random access.
//!
//! An archive is at most [`MAX_MEMBERS`] files; of documents at most [`MAX_DOCUMENT_BYTES`] are read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use super::name::Name;
use super::tar::{Kind, Reader};

/// Files of an archive: an image has a few for each layer.
const MAX_MEMBERS: usize = 100_000;
/// Most of an index, a manifest or a configuration: what registries take.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Enough for a header and a usual extension.
const HEADER_BYTES: usize = 2048;

/// The marker of OCI's layout, and its entrance (image-layout.md).
pub(super) const LAYOUT: [&str; 2] = ["oci-layout", "index.json"];
/// The entrance of docker's archives.
pub(super) const SAVED: &str = "manifest.json";

/// Files by name.
#[derive(Debug)]
pub(super) enum Source {
    /// Those of a directory.
    Directory(PathBuf),
    /// Those of an archive.
    Archive { file: File, members: HashMap<PathBuf, Extent> },
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    length: u64,
}

/// How an image describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Oci,
    Docker,
}

impl Source {
    /// Looks into an archive, uncompressed. `None` if there is anything in it that images do not have.
    pub(super) fn of_archive(file: &File) -> io::Result<Option<Self>> {
        let (mut members, mut links) = (HashMap::new(), Vec::new());
        let mut at = 0;
        loop {
            let mut positioned = file;
            positioned.seek(SeekFrom::Start(at))?;
            let mut reader = Reader::new(BufReader::with_capacity(HEADER_BYTES, positioned));
            let Some(entry) = reader.next()? else {
                follow(&links, &mut members);
                return Ok(Some(Self::Archive { file: file.try_clone()?, members }));
            };
            let name = Name::of(&entry.path).filter(belongs_to_image);
            let Some(name) = name else {
                return Ok(None);
            };
            if entry.kind == Kind::File {
                let extent = Extent { offset: at + reader.position(), length: entry.size };
                members.insert(name.path(), extent);
            }
            if entry.kind == Kind::Symlink {
                links.push((name.path(), beside(&name.path(), OsStr::from_bytes(&entry.link))));
            }
            if members.len() + links.len() > MAX_MEMBERS {
                return Err(io::Error::other(format!("it holds more than {MAX_MEMBERS} files")));
            }
            let next = reader.position().checked_add(reader.stored()).and_then(|size| at.checked_add(size));
            at = next.ok_or(ErrorKind::InvalidData)?;
        }
    }

    /// How it describes itself; `None` if it is no image.
    pub(super) fn format(&self) -> Option<Format> {
        if LAYOUT.iter().all(|name| self.has(name)) {
            return Some(Format::Oci);
        }
        self.has(SAVED).then_some(Format::Docker)
    }

    /// Opens a file; also its length.
    pub(super) fn open(&self, name: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let missing = || io::Error::new(ErrorKind::NotFound, "it is missing");
        match self {
            Self::Directory(directory) => {
                let file = File::open(directory.join(name)).map_err(|cause| match cause.kind() {
                    ErrorKind::NotFound => missing(),
                    _ => cause,
                })?;
                let length = file.metadata()?.len();
                Ok((Box::new(file), length))
            }
            Self::Archive { file, members } => {
                let extent = *members.get(Path::new(name)).ok_or_else(missing)?;
                Ok((Box::new(Slice { file, left: extent }), extent.length))
            }
        }
    }

    /// All of a document.
    pub(super) fn document(&self, name: &str) -> io::Result<Vec<u8>> {
        let (input, length) = self.open(name)?;
        if length > MAX_DOCUMENT_BYTES {
            return Err(io::Error::other(format!("it has {length} bytes, which is too much for a document")));
        }
        let mut text = Vec::new();
        input.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(name).is_file(),
            Self::Archive { members, .. } => members.contains_key(Path::new(name)),
        }
    }
}

/// Gives links the files that they lead to: docker keeps a layer that two images share once.
fn follow(links: &[(PathBuf, PathBuf)], members: &mut HashMap<PathBuf, Extent>) {
    for (name, target) in links {
        if let Some(extent) = members.get(target).copied() {
            members.entry(name.clone()).or_insert(extent);
        }
    }
}

/// Where `link` leads from the place of `name`, by names alone.
fn beside(name: &Path, link: &OsStr) -> PathBuf {
    let mut place = name.parent().map(Path::to_owned).unwrap_or_default();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(part) => place.push(part),
            Component::ParentDir => drop(place.pop()),
            Component::RootDir => place = PathBuf::new(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    place
}

/// Whether an archive that begins like this may be one of an image.
pub(super) fn may_be_image(archive: impl Read) -> io::Result<bool> {
    let mut reader = Reader::new(archive);
    while let Some(entry) = reader.next()? {
        match Name::of(&entry.path) {
            Some(Name::Root) => {}
            name => return Ok(name.as_ref().is_some_and(belongs_to_image)),
        }
    }
    Ok(false)
}

/// Whether images have files of that name: in docker's archives there are some called by digests.
fn belongs_to_image(name: &Name) -> bool {
    let path = name.path();
    let Some(first) = path.iter().next().map(|first| first.as_encoded_bytes()) else {
        return true;
    };
    let known = [b"blobs".as_slice(), b"oci-layout", b"index.json", b"manifest.json", b"repositories"];
    let digits = first.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    known.contains(&first) || digits == 64
}

/// A reader of part of a file, wherever the file stands.
struct Slice<'a> {
    file: &'a File,
    left: Extent,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left.length).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.left.offset)?;
        self.left.offset += read as u64;
        self.left.length -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::fixture::Tar;
    use super::*;

    fn looked_into(tar: &[u8]) -> Option<Source> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(tar).expect("written");
        Source::of_archive(&file).expect("a sound archive")
    }

    #[test]
    fn images_are_told_from_root_filesystems() {
        let hex = "ab".repeat(32);
        let oci =
            Tar::new().directory("./", 0o755).file("./index.json", b"{}").file("oci-layout", b"{}").finish();
        let docker = Tar::new().file(&format!("{hex}.json"), b"").file("manifest.json", b"[]").finish();
        let format = |tar: &[u8]| looked_into(tar).and_then(|source| source.format());
        assert_eq!((format(&oci), format(&docker)), (Some(Format::Oci), Some(Format::Docker)));
        assert!(
            may_be_image(oci.as_slice()).expect("sound") && may_be_image(docker.as_slice()).expect("sound")
        );
        let root = Tar::new().directory("./", 0o755).directory("bin", 0o755).file("index.json", b"").finish();
        assert!(looked_into(&root).is_none() && !may_be_image(root.as_slice()).expect("sound"));
        assert_eq!(format(&Tar::new().file("blobs/x", b"").finish()), None);
        assert!(looked_into(&Tar::new().file("../index.json", b"").finish()).is_none());
    }

    #[test]
    fn files_are_found_in_any_order() {
        let tar = Tar::new()
            .link(b'2', "blobs/l", "../blobs/./b")
            .file("blobs/a", &[1; 700])
            .file("blobs/b", b"text")
            .file("blobs/a", b"again")
            .link(b'2', "blobs/out", "../../etc/passwd")
            .finish();
        let source = looked_into(&tar).expect("an image's");
        assert_eq!(source.document("blobs/b").expect("there"), b"text");
        assert_eq!(source.document("blobs/a").expect("there"), b"again");
        assert_eq!(source.document("blobs/l").expect("linked"), b"text");
        assert!(source.document("blobs/out").is_err());
        assert!(source.document("blobs/c").expect_err("not there").to_string().contains("missing"));
    }
}
