//! How an image is run: what of it the command line replaces.

use std::ffi::OsString;

use clap::Args;

use super::args::CONTAINER;
use crate::config::{ImageUse, Platform};

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

/// What `args` mean for an image, with the words behind ROOTFS and the variables that are asked for.
pub(super) fn settle(args: ImageArgs, words: &[OsString], env: Vec<(OsString, OsString)>) -> ImageUse {
    let skipped = usize::from(words.first().is_some_and(|word| word == "--"));
    ImageUse {
        entrypoint: args.entrypoint,
        arguments: words[skipped..].to_vec(),
        env,
        publish_all: args.publish_all,
        platform: args.platform,
    }
}

fn platform(text: &str) -> Result<Platform, String> {
    Platform::parse(text).ok_or_else(|| "expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64".to_owned())
}
