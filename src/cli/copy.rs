//! `rnet cp`: files into a container that runs, or out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Surroundings;
use crate::config::{Copy, is_network_name};

#[derive(Args, Debug)]
pub(super) struct CopyArgs {
    /// Copy what SRC is a link to, instead of the link.
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// No effect: modes and times are always kept, and owners never.
    #[arg(short, long)]
    archive: bool,

    /// What to copy: CONTAINER:PATH, or PATH of the host.
    #[arg(value_name = "SRC")]
    source: OsString,

    /// Where to, the other way round.
    #[arg(value_name = "DST")]
    destination: OsString,
}

pub(super) const EXAMPLES: &str = "\
An existing directory takes SRC by its name; of SRC/. the contents. Anything else becomes the new name of SRC.

Examples:
  rnet cp site web:/srv               the directory, as /srv/site if there is a /srv
  rnet cp site/. web:/srv             what is in it
  rnet cp web:/var/log/x.log .
  rnet exec web tar c /srv | tar x    a stream";

/// A place on the command line.
enum Place {
    Host(PathBuf),
    Container(String, PathBuf),
}

/// Settles it. The error is a sentence for the user.
pub(super) fn settle(args: CopyArgs, surroundings: &Surroundings) -> Result<Copy, String> {
    let follow = args.follow_link;
    match (place(&args.source, surroundings)?, place(&args.destination, surroundings)?) {
        (Place::Host(source), Place::Container(container, destination)) => {
            Ok(Copy { container, source, destination, inward: true, follow })
        }
        (Place::Container(container, source), Place::Host(destination)) => {
            Ok(Copy { container, source, destination, inward: false, follow })
        }
        (Place::Host(_), Place::Host(_)) => {
            Err("neither SRC nor DST names a container, as CONTAINER:PATH does".to_owned())
        }
        (Place::Container(..), Place::Container(..)) => {
            Err("SRC and DST are both in containers; copy to the host in between".to_owned())
        }
    }
}

/// `CONTAINER:PATH`, unless it begins like a path.
fn place(word: &OsStr, surroundings: &Surroundings) -> Result<Place, String> {
    let bytes = word.as_bytes();
    if bytes == b"-" {
        return Err("streams are not understood; `rnet exec CONTAINER tar` makes and takes them".to_owned());
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    match colon.filter(|_| !matches!(bytes.first(), Some(b'/' | b'.'))) {
        Some(colon) => {
            let container = String::from_utf8_lossy(&bytes[..colon]).into_owned();
            if !is_network_name(&container) {
                return Err(format!(
                    "'{container}' is no container's name; write ./ before a path with a colon"
                ));
            }
            Ok(Place::Container(container, Path::new("/").join(OsStr::from_bytes(&bytes[colon + 1..]))))
        }
        None if bytes.is_empty() => Err("a path is empty".to_owned()),
        None => Ok(Place::Host(surroundings.cwd.join(word))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(source: &str, destination: &str) -> Result<Copy, String> {
        let surroundings = Surroundings {
            env: Vec::new(),
            cwd: "/home/me".into(),
            hostname: "host".to_owned(),
            stdin_is_tty: false,
            host_subnets: Vec::new(),
            random: [7; super::super::RANDOM_BYTES],
            cores: 1,
        };
        let (source, destination) = (source.into(), destination.into());
        settle(CopyArgs { follow_link: false, archive: false, source, destination }, &surroundings)
    }

    #[test]
    fn one_place_is_in_a_container() {
        let copy = settled("site/.", "web:srv/").expect("valid");
        assert_eq!((copy.container.as_str(), copy.inward), ("web", true));
        assert_eq!(copy.source.as_os_str(), "/home/me/site/.");
        assert_eq!(copy.destination.as_os_str(), "/srv/");
        let copy = settled("web:/a:b", "./c:d").expect("valid");
        assert_eq!(
            (copy.source, copy.destination, copy.inward),
            ("/a:b".into(), "/home/me/./c:d".into(), false)
        );
        for (source, destination, told) in [
            ("a", "b", "neither"),
            ("a:b", "c:d", "both"),
            ("-", "web:/", "rnet exec"),
            ("", "web:/", "empty"),
            ("a b:c", "d", "./ before a path"),
        ] {
            let mistake = settled(source, destination).expect_err("refused");
            assert!(mistake.contains(told), "{mistake}");
        }
    }
}
