//! Images as OCI and docker describe them: indexes, manifests and configurations, which are JSON.
//!
//! Pure: nothing is opened here. What is not needed of a document is not looked at, except where it would mean something
//! else (encrypted layers). OCI image specification 1.1: image-index.md, manifest.md, config.md, annotations.md.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use serde::Deserialize;

use super::digest::Digest;
use crate::config::{Platform, Transport};

/// Where an index has the names of its images, the fullest first: docker's archives have only the tag in OCI's place.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An index or a manifest.
#[derive(Debug)]
pub(super) enum Document {
    /// Several images, or one for several machines.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image for one machine.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    /// The lowest first.
    pub(super) layers: Vec<Descriptor>,
}

/// A blob, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    pub(super) size: u64,
    media_type: String,
    platform: Option<Platform>,
    /// What it is called, the fullest name first.
    names: Vec<String>,
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageConfig {
    pub(super) platform: Option<Platform>,
    /// User, or user and group, by name or number; empty is root.
    pub(super) user: String,
    pub(super) env: Vec<(String, String)>,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    /// Empty is the root.
    pub(super) workdir: String,
    pub(super) ports: Vec<(u16, Transport)>,
    /// By name or number; empty is SIGTERM.
    pub(super) stop_signal: String,
    /// Digests of its layers, uncompressed.
    pub(super) diff_ids: Vec<Digest>,
}

/// An image in an archive that `docker save` has written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    /// The file with its configuration.
    pub(super) config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    /// Files, the lowest layer first.
    pub(super) layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawImage {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    rootfs: RawRoot,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Document {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: RawDocument = parsed(text)?;
        let all = |raw: Vec<RawDescriptor>| raw.into_iter().map(Descriptor::new).collect::<Result<_, _>>();
        match raw {
            RawDocument { manifests: Some(manifests), .. } => all(manifests).map(Self::Index),
            RawDocument { config: Some(config), layers: Some(layers), .. } => {
                Ok(Self::Manifest(Manifest { config: Descriptor::new(config)?, layers: all(layers)? }))
            }
            _ => Err("it is neither an index nor the manifest of an image".to_owned()),
        }
    }
}

impl Descriptor {
    fn new(raw: RawDescriptor) -> Result<Self, String> {
        let platform = raw.platform.map(|raw| Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant.filter(|variant| !variant.is_empty()),
        });
        Ok(Self {
            digest: Digest::parse(&raw.digest).ok_or_else(|| not_a_digest(&raw.digest))?,
            size: raw.size,
            media_type: raw.media_type,
            platform,
            names: NAMES.iter().filter_map(|name| raw.annotations.get(*name).cloned()).collect(),
        })
    }

    /// Refuses what is no layer that can be unpacked.
    pub(super) fn check_layer(&self) -> Result<(), String> {
        let kind = self.media_type.as_str();
        if kind.ends_with("+encrypted") {
            return Err("it is encrypted; `skopeo copy --decryption-key` undoes that".to_owned());
        }
        // Older tools leave it out.
        match kind.is_empty() || kind.contains("image.layer") || kind.contains("image.rootfs") {
            true => Ok(()),
            false => Err(format!("it is of type {kind}, and no layer of a root filesystem")),
        }
    }
}

impl ImageConfig {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: RawImage = parsed(text)?;
        let platform = raw.os.zip(raw.architecture).map(|(os, architecture)| Platform {
            os,
            architecture,
            variant: raw.variant.filter(|variant| !variant.is_empty()),
        });
        let diff_ids =
            raw.rootfs.diff_ids.iter().map(|text| Digest::parse(text).ok_or_else(|| not_a_digest(text)));
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        Ok(Self {
            platform,
            user: raw.config.user,
            env: raw.config.env.iter().map(pair).collect(),
            entrypoint: raw.config.entrypoint,
            command: raw.config.cmd,
            workdir: raw.config.working_dir,
            ports: raw.config.exposed_ports.keys().filter_map(|text| port(text)).collect(),
            stop_signal: raw.config.stop_signal,
            diff_ids: diff_ids.collect::<Result<_, _>>()?,
        })
    }
}

/// The images of an archive that `docker save` has written.
pub(super) fn saved(text: &[u8]) -> Result<Vec<Saved>, String> {
    parsed(text)
}

/// Which of `images` is meant: the one called `name`, or the only one.
pub(super) fn choose_saved<'a>(images: &'a [Saved], name: Option<&str>) -> Result<&'a Saved, String> {
    let called = |image: &&Saved| match name {
        None => true,
        Some(name) => image.repo_tags.iter().any(|tag| is_called(tag, name)),
    };
    let candidates: Vec<&Saved> = images.iter().filter(called).collect();
    match candidates[..] {
        [image] => Ok(image),
        _ => {
            let tags = images.iter().flat_map(|image| image.repo_tags.iter().map(String::as_str));
            Err(not_one(candidates.len(), name, tags.collect()))
        }
    }
}

/// Which of `manifests` is meant: the one called `name`, or the only one, that is for `platform`.
pub(super) fn choose<'a>(
    manifests: &'a [Descriptor],
    name: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor, String> {
    let called = |image: &&Descriptor| {
        name.is_none_or(|name| image.names.iter().any(|theirs| is_called(theirs, name)))
    };
    let named: Vec<&Descriptor> = manifests.iter().filter(called).collect();
    let fitting: Vec<&Descriptor> = named.iter().copied().filter(|image| fits(image, platform)).collect();
    let first_name = fitting.first().and_then(|image| image.names.first());
    match fitting[..] {
        [] if !named.is_empty() => {
            let there = named.iter().filter_map(|image| Some(image.platform.as_ref()?.to_string()));
            Err(format!("it holds nothing for {platform}, but for {}", there.collect::<Vec<_>>().join(", ")))
        }
        // Variants of one image.
        [first, ..] if fitting.iter().all(|image| image.names.first() == first_name) => {
            let exact = |image: &&&Descriptor| image.platform.as_ref() == Some(platform);
            Ok(fitting.iter().find(exact).unwrap_or(&first))
        }
        _ => {
            let names = manifests.iter().filter_map(|image| image.names.first().map(String::as_str));
            Err(not_one(fitting.len(), name, names.collect()))
        }
    }
}

fn fits(image: &Descriptor, platform: &Platform) -> bool {
    let Some(theirs) = &image.platform else {
        return true;
    };
    let variants_agree = match (&theirs.variant, &platform.variant) {
        (Some(theirs), Some(wanted)) => theirs == wanted,
        _ => true,
    };
    theirs.os == platform.os && theirs.architecture == platform.architecture && variants_agree
}

/// Whether `name` means the image called `tag`, such as `docker.io/library/alpine:3.20`: all of it, or what is behind
/// its last `/` or colon.
fn is_called(tag: &str, name: &str) -> bool {
    let ends = |separator: char| tag.rsplit_once(separator).is_some_and(|(_, end)| end == name);
    tag == name || ends('/') || ends(':')
}

fn not_one(candidates: usize, name: Option<&str>, mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    let names = if names.is_empty() { "images without names".to_owned() } else { names.join(", ") };
    match (candidates, name) {
        (0, Some(name)) => format!("it holds nothing called {name}, but {names}"),
        (0, None) => "it holds no image".to_owned(),
        _ => format!("it holds several images: {names}; ROOTFS:NAME chooses one"),
    }
}

/// The platform of this machine.
pub(super) fn this_machine() -> Platform {
    let (architecture, variant) = match ARCH {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", Some("v8")),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
        "powerpc64" => ("ppc64", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    };
    Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) }
}

/// `PORT[/PROTOCOL]`; protocols other than TCP and UDP are not carried.
fn port(text: &str) -> Option<(u16, Transport)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let transport = match protocol {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    number.parse().ok().filter(|number| *number != 0).map(|number| (number, transport))
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|cause| format!("it is not understood: {cause}"))
}

fn not_a_digest(text: &str) -> String {
    format!("'{text}' is no SHA-256 digest")
}

#[cfg(test)]
mod tests;
