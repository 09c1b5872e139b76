//! Named layers: where an overlay of that name keeps its writes, and the commands about them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::settle::absolute;
use super::{Surroundings, values};
use crate::config::{LayersCall, LayersVerb};

/// Below the user's directory for data (XDG Base Directory Specification).
const DIRECTORY: &str = "rnet/layers";

/// `rnet layer`.
#[derive(Debug, Subcommand)]
pub(super) enum LayerVerb {
    /// List the layers.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove layers, with all that was written to them.
    Rm {
        /// The layers, as --overlay names them.
        #[arg(value_name = "LAYER", required = true, value_parser = values::name)]
        names: Vec<String>,
    },
}

/// Settles it.
pub(super) fn settle(verb: LayerVerb, surroundings: &Surroundings) -> Result<LayersCall, String> {
    let verb = match verb {
        LayerVerb::Ls { json } => LayersVerb::List { json },
        LayerVerb::Rm { names } => LayersVerb::Remove { names },
    };
    Ok(LayersCall { directory: directory(surroundings)?, verb })
}

/// Where `--overlay=PLACE` keeps its writes: a directory, written with a slash, or else the layer of that name.
pub(super) fn place(place: &OsStr, surroundings: &Surroundings) -> Result<PathBuf, String> {
    let is_path = place.as_encoded_bytes().contains(&b'/') || [".", ".."].iter().any(|dots| place == *dots);
    if is_path {
        return Ok(absolute(Path::new(place), surroundings));
    }
    let mistake = |cause: String| {
        format!("--overlay={}: {cause} (a directory is written with a slash: ./DIR)", place.display())
    };
    let name = values::name(&place.to_string_lossy()).map_err(mistake)?;
    Ok(directory(surroundings)?.join(name))
}

fn directory(surroundings: &Surroundings) -> Result<PathBuf, String> {
    let variable = |wanted: &str| {
        let found = surroundings.env.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value): &(OsString, OsString)| PathBuf::from(value)).filter(|path| path.is_absolute())
    };
    let data = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    data.map(|data| data.join(DIRECTORY))
        .ok_or_else(|| "a named layer needs HOME or XDG_DATA_HOME, to know where it is".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::surroundings;

    #[test]
    fn a_word_is_a_layer_and_a_path_a_directory() {
        let with = |name: &str, value: &str| Surroundings {
            env: vec![(name.into(), value.into())],
            ..surroundings()
        };
        let home = with("HOME", "/home/me");
        assert_eq!(place(OsStr::new("dev"), &home), Ok("/home/me/.local/share/rnet/layers/dev".into()));
        assert_eq!(place(OsStr::new("./dev"), &home), Ok("/home/me/dev".into()));
        assert_eq!(place(OsStr::new("/a/b"), &home), Ok("/a/b".into()));
        assert!(place(OsStr::new("a b"), &home).is_err_and(|said| said.contains("./DIR")));
        let data = with("XDG_DATA_HOME", "/data");
        assert_eq!(place(OsStr::new("dev"), &data), Ok("/data/rnet/layers/dev".into()));
        let nowhere = with("HOME", "");
        assert!(place(OsStr::new("dev"), &nowhere).is_err_and(|said| said.contains("XDG_DATA_HOME")));
    }
}
