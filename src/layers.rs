//! `rnet layer`: the named layers in which overlays keep their writes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::config::{LayersCall, LayersVerb};
use crate::container;
use crate::disk;
use crate::error::{Context, Error, Result};

/// A layer that exists.
struct Layer {
    name: String,
    in_use: bool,
}

/// Does what is asked; the exit status, which is 0.
pub fn carry_out(call: &LayersCall) -> Result<u8> {
    match &call.verb {
        LayersVerb::List { json } => list(&call.directory, *json)?,
        LayersVerb::Remove { names } => remove(&call.directory, names)?,
    }
    Ok(0)
}

fn list(directory: &Path, json: bool) -> Result<()> {
    let layers = layers(directory)?;
    let text = if json {
        let described = |Layer { name, in_use }: &Layer| json!({"name": name, "path": directory.join(name), "in_use": in_use});
        format!("{}\n", layers.iter().map(described).collect::<serde_json::Value>())
    } else {
        let line =
            |Layer { name, in_use }: &Layer| format!("{name}{}\n", if *in_use { "  in use" } else { "" });
        layers.iter().map(line).collect()
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")
}

/// Those in `directory`, by name.
fn layers(directory: &Path) -> Result<Vec<Layer>> {
    let entries = match fs::read_dir(directory) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("cannot read", directory.display())?,
    };
    let layer = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        entry.file_type().ok()?.is_dir().then(|| Layer { name, in_use: disk::lock(&entry.path()).is_none() })
    };
    let mut layers: Vec<Layer> = entries.flatten().filter_map(layer).collect();
    layers.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(layers)
}

/// Nothing is removed if one of the names is wrong.
fn remove(directory: &Path, names: &[String]) -> Result<()> {
    for name in names {
        if !directory.join(name).is_dir() {
            return Err(Error::new(
                "no such layer",
                name,
                format!("{} has none of that name", directory.display()),
            )
            .hint("`rnet layer ls` lists all"));
        }
    }
    names.iter().try_for_each(|name| container::remove_layer(&directory.join(name)))
}
