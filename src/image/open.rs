//! Images: from their entrance over index and manifest to layers and configuration, each verified by its digest.
//!
//! What a digest names is refused if it is anything else. An index leads to at most [`MAX_INDEXES`] further ones, an
//! image has at most [`MAX_LAYERS`] layers.

use std::io::{self, BufReader};
use std::path::Path;

use super::compression::decompressed;
use super::digest::{Digest, Digesting};
use super::layout::{self, Descriptor, Document, ImageConfig};
use super::source::{Format, LAYOUT, SAVED, Source};
use super::unpack::{Summary, Unpacking};
use super::watch::Watch;
use super::{READ_BYTES, Wanted};

/// Indexes in indexes: one for the names, one for the platforms, and some to spare.
const MAX_INDEXES: usize = 4;
/// Layers of one image; overlays of other programs take 128.
const MAX_LAYERS: usize = 1024;

/// An image that has been found, and not been unpacked.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) config: ImageConfig,
    /// The configuration as it is written.
    pub(super) config_text: String,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// Its file.
    name: String,
    check: Check,
}

/// How a layer is known to be the right one.
#[derive(Clone, Copy, Debug)]
enum Check {
    /// By the digest and the size of its file.
    Stored(Digest, u64),
    /// By the digest of what it holds, uncompressed.
    Content(Digest),
}

impl Image {
    /// Finds the image that is wanted.
    pub(super) fn find(source: &Source, format: Format, wanted: &Wanted) -> io::Result<Self> {
        let (text, layers) = match format {
            Format::Oci => oci(source, wanted)?,
            Format::Docker => saved(source, wanted)?,
        };
        if layers.len() > MAX_LAYERS {
            return Err(io::Error::other(format!("it has {} layers, more than {MAX_LAYERS}", layers.len())));
        }
        let config = ImageConfig::parse(&text).map_err(in_document("its configuration"))?;
        Ok(Self { config, config_text: String::from_utf8(text).map_err(io::Error::other)?, layers })
    }

    /// The digest of its tree: that of all its layers.
    pub(super) fn tree(&self) -> Digest {
        let lines = self.layers.iter().map(|layer| match layer.check {
            Check::Stored(digest, _) => format!("stored {digest}\n"),
            Check::Content(digest) => format!("content {digest}\n"),
        });
        Digest::of(lines.collect::<String>().as_bytes())
    }

    /// Unpacks all layers, one over the other, into `root`, an empty directory. `path` is for whoever waits.
    pub(super) fn unpack(
        &self,
        source: &Source,
        path: &Path,
        root: &Path,
        watch: &mut Watch,
    ) -> io::Result<Summary> {
        let lengths = self.layers.iter().map(|layer| Ok(source.open(&layer.name)?.1));
        watch.tell("unpacking", path, lengths.sum::<io::Result<u64>>().unwrap_or_default());
        let mut unpacking = Unpacking::new(root)?;
        for layer in &self.layers {
            layer.unpack(source, &mut unpacking, watch).map_err(in_blob(&layer.name))?;
        }
        unpacking.finish()
    }
}

impl Layer {
    fn unpack(&self, source: &Source, unpacking: &mut Unpacking, watch: &mut Watch) -> io::Result<()> {
        let (file, length) = source.open(&self.name)?;
        let mut file = Digesting::new(watch.over(file));
        let buffered = BufReader::with_capacity(READ_BYTES, &mut file);
        // What is damaged is seldom sound inside: the digest tells more than how far it went.
        match self.check {
            Check::Stored(digest, size) => {
                let unpacked = decompressed(buffered).and_then(|content| unpacking.layer(content));
                check_size(length, size).and(file.verify(digest)).and(unpacked)
            }
            Check::Content(digest) => {
                let mut content = Digesting::new(decompressed(buffered)?);
                let unpacked = unpacking.layer(&mut content);
                content.verify(digest).and(unpacked)
            }
        }
    }
}

/// An image in OCI's layout: its configuration, and its layers.
fn oci(source: &Source, wanted: &Wanted) -> io::Result<(Vec<u8>, Vec<Layer>)> {
    let entrance = LAYOUT[1];
    let mut document = source.document(entrance).and_then(parsed).map_err(in_blob(entrance))?;
    let mut name = wanted.name.as_deref();
    for _ in 0..=MAX_INDEXES {
        let manifests = match document {
            Document::Index(manifests) => manifests,
            Document::Manifest(manifest) => {
                let layers = manifest.layers.iter().map(Layer::of_blob).collect::<io::Result<_>>()?;
                return Ok((blob(source, &manifest.config)?, layers));
            }
        };
        let chosen = layout::choose(&manifests, name, &wanted.platform).map_err(io::Error::other)?;
        // Names are those of the entrance.
        name = None;
        document = blob(source, chosen).and_then(parsed).map_err(in_blob(&path_of(chosen.digest)))?;
    }
    Err(io::Error::other("its indexes lead to no manifest"))
}

/// An image as `docker save` writes it.
fn saved(source: &Source, wanted: &Wanted) -> io::Result<(Vec<u8>, Vec<Layer>)> {
    let images = source.document(SAVED).and_then(|text| layout::saved(&text).map_err(io::Error::other));
    let images = images.map_err(in_blob(SAVED))?;
    let image = layout::choose_saved(&images, wanted.name.as_deref()).map_err(io::Error::other)?;
    let config = source.document(&image.config).map_err(in_blob(&image.config))?;
    let diff_ids = ImageConfig::parse(&config).map_err(in_document(&image.config))?.diff_ids;
    if diff_ids.len() != image.layers.len() {
        return Err(in_document(&image.config)("it is for another number of layers".to_owned()));
    }
    let layers = image.layers.iter().zip(diff_ids);
    let layers = layers.map(|(name, diff_id)| Layer { name: name.clone(), check: Check::Content(diff_id) });
    Ok((config, layers.collect()))
}

impl Layer {
    fn of_blob(blob: &Descriptor) -> io::Result<Self> {
        let name = path_of(blob.digest);
        blob.check_layer().map_err(in_document(&name))?;
        Ok(Self { name, check: Check::Stored(blob.digest, blob.size) })
    }
}

/// All of a document that a digest names.
fn blob(source: &Source, descriptor: &Descriptor) -> io::Result<Vec<u8>> {
    let name = path_of(descriptor.digest);
    let checked = || {
        let text = source.document(&name)?;
        check_size(text.len() as u64, descriptor.size)?;
        Digesting::new(text.as_slice()).verify(descriptor.digest)?;
        Ok(text)
    };
    checked().map_err(in_blob(&name))
}

fn check_size(found: u64, said: u64) -> io::Result<()> {
    match found == said {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("its size is {found}, not {said}"))),
    }
}

fn parsed(text: Vec<u8>) -> io::Result<Document> {
    Document::parse(&text).map_err(io::Error::other)
}

fn path_of(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn in_blob(name: &str) -> impl Fn(io::Error) -> io::Error {
    move |cause| {
        let told = cause.to_string();
        match told.starts_with(name) {
            true => cause,
            false => io::Error::new(cause.kind(), format!("{name}: {told}")),
        }
    }
}

fn in_document(name: &str) -> impl Fn(String) -> io::Error {
    move |cause| io::Error::other(format!("{name}: {cause}"))
}
