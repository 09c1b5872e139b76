//! `rnet completions` and `rnet man`.

use std::fs;
use std::io::{self, Write};

use crate::cli::{self, Manual};
use crate::error::{Context, Result};

/// Prints or writes what is wanted; the exit status, which is 0.
pub fn manual(wanted: &Manual) -> Result<u8> {
    const PAGES: &str = "the manual pages";
    let text = match wanted {
        Manual::Completions(shell) => cli::completions(*shell),
        Manual::Pages(None) => {
            let pages = cli::pages().context("cannot make", PAGES)?;
            pages.into_iter().next().map(|(_, page)| page).unwrap_or_default()
        }
        Manual::Pages(Some(directory)) => {
            fs::create_dir_all(directory).context("cannot make", directory.display())?;
            for (name, page) in cli::pages().context("cannot make", PAGES)? {
                let path = directory.join(name);
                fs::write(&path, page).context("cannot write", path.display())?;
            }
            return Ok(0);
        }
    };
    io::stdout().write_all(&text).context("cannot write to", "standard output")?;
    Ok(0)
}
