//! How an image is run: what of it the command line replaces.

use std::ffi::OsString;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Surroundings;
use super::args::CONTAINER;
use super::settle::absolute;
use crate::config::{CacheCall, ImageUse, Platform, TreeName};

const SECONDS_PER_DAY: u64 = 86_400;

#[derive(Args, Debug)]
pub(super) struct ImageArgs {
    /// Run this program with what follows ROOTFS as its arguments, in place of an image's entry point; "" for none.
    #[arg(long, value_name = "PROGRAM", help_heading = CONTAINER)]
    entrypoint: Option<OsString>,

    /// Publish all ports that an image exposes, at ports of the kernel's choice.
    #[arg(short = 'P', long, help_heading = CONTAINER)]
    publish_all: bool,

    /// Take an image for other machines than this one: OS/ARCHITECTURE[/VARIANT].
    #[arg(long, value_name = "PLATFORM", value_parser = platform, help_heading = CONTAINER)]
    platform: Option<Platform>,
}

/// What can be done about archives and images that have been unpacked.
#[derive(Debug, Subcommand)]
pub(super) enum ImageVerb {
    /// List them, with what they take on the disk.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove some; the archives that they were made of stay.
    Rm {
        /// The beginning of a digest, or the path of an archive or image.
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<OsString>,
    },
    /// Remove all that no container uses.
    Prune {
        /// Keep what has been used within so many days.
        #[arg(long, value_name = "DAYS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=36_500))]
        unused_for: u64,
    },
}

/// What `verb` asks for.
pub(super) fn call(verb: ImageVerb, surroundings: &Surroundings) -> CacheCall {
    match verb {
        ImageVerb::Ls { json } => CacheCall::List { json },
        ImageVerb::Rm { images } => CacheCall::Remove(
            images
                .into_iter()
                .map(|image| TreeName {
                    path: absolute(image.as_ref(), surroundings),
                    word: image.to_string_lossy().into_owned(),
                })
                .collect(),
        ),
        ImageVerb::Prune { unused_for } => {
            CacheCall::Prune(Duration::from_secs(unused_for * SECONDS_PER_DAY))
        }
    }
}

/// What `args` mean for an image, with the words behind ROOTFS and the variables that are asked for.
pub(super) fn settle(args: ImageArgs, words: &[OsString], env: Vec<(OsString, OsString)>) -> ImageUse {
    let skipped = usize::from(words.first().is_some_and(|word| word == "--"));
    ImageUse {
        entrypoint: args.entrypoint,
        arguments: words[skipped..].to_vec(),
        env,
        publish_all: args.publish_all,
        platform: args.platform,
        ..ImageUse::default()
    }
}

fn platform(text: &str) -> Result<Platform, String> {
    Platform::parse(text).ok_or_else(|| "expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64".to_owned())
}
