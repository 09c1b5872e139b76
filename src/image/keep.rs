//! What the cache holds: shown, and freed.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::json;

use super::cache::{Cache, Kept, now};
use crate::config::{CacheCall, TreeName};
use crate::error::{Context, Error, Result};

/// Digits of a digest that are shown, and suffice in a cache.
const SHOWN_DIGITS: usize = 12;

/// Does what `call` asks for, and prints what there is to tell; the exit status, which is 0.
pub fn keep(call: &CacheCall) -> Result<u8> {
    let cache = Cache::open()?;
    let text = match call {
        CacheCall::List { json: true } => format!("{}\n", described(&cache.list())),
        CacheCall::List { json: false } => table(&cache.list(), now()),
        CacheCall::Remove(names) => removed(&cache, names)?,
        CacheCall::Prune(age) => pruned(&cache, *age)?,
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")?;
    Ok(0)
}

fn described(trees: &[Kept]) -> serde_json::Value {
    let trees = trees.iter().map(|tree| {
        json!({
            "digest": tree.digest.to_string(),
            "source": tree.about.source,
            "bytes": tree.about.bytes,
            "entries": tree.about.entries,
            "created": tree.about.created,
            "used": tree.used,
            "in_use": tree.in_use,
        })
    });
    trees.collect()
}

fn table(trees: &[Kept], now: u64) -> String {
    let mut text = format!("{:<14}{:>10}  {:<18}{:<18}{}\n", "DIGEST", "SIZE", "UNPACKED", "USED", "SOURCE");
    for tree in trees {
        let digits = &tree.digest.hex()[..SHOWN_DIGITS];
        let ago = |time: u64| format!("{} ago", span(now.saturating_sub(time)));
        let used = if tree.in_use { "now".to_owned() } else { ago(tree.used) };
        let size = size(tree.about.bytes);
        let about = &tree.about;
        text += &format!(
            "{digits:<14}{size:>10}  {:<18}{used:<18}{}\n",
            ago(about.created),
            shown(&about.source)
        );
    }
    text
}

fn removed(cache: &Cache, names: &[TreeName]) -> Result<String> {
    let mut text = String::new();
    for name in names {
        let failed = |cause: &dyn std::fmt::Display| Error::new("cannot remove", &name.word, cause);
        let trees = cache.list();
        let called: Vec<&Kept> = trees.iter().filter(|tree| is_called(tree, name)).collect();
        let [tree] = called[..] else {
            let cause =
                if called.is_empty() { "nothing of that name is unpacked" } else { "several are called so" };
            return Err(failed(&cause).hint("`rnet image ls` shows what there is"));
        };
        match cache.remove(tree.digest).map_err(|cause| failed(&cause))? {
            true => text += &format!("{}\n", tree.digest),
            false => return Err(failed(&"a container uses it").hint("end that first, or let it be")),
        }
    }
    cache.sweep();
    Ok(text)
}

/// Whether `name` begins its digest, with or without its algorithm, or is where it came from.
fn is_called(tree: &Kept, name: &TreeName) -> bool {
    let begins = |digest: &str| !name.word.is_empty() && digest.starts_with(&name.word);
    begins(&tree.digest.hex())
        || begins(&tree.digest.to_string())
        || name.path.as_os_str() == tree.about.source.as_str()
}

fn pruned(cache: &Cache, age: Duration) -> Result<String> {
    let (mut text, mut bytes) = (String::new(), 0);
    for tree in cache.list() {
        let is_old = now().saturating_sub(tree.used) >= age.as_secs();
        let removed =
            is_old && !tree.in_use && cache.remove(tree.digest).context("cannot remove", tree.digest)?;
        if removed {
            text += &format!("{}\n", tree.digest);
            bytes += tree.about.bytes;
        }
    }
    cache.sweep();
    Ok(text + &format!("{} freed\n", size(bytes)))
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    format!("{amount:.1} {unit}")
}

/// Seconds for people.
fn span(seconds: u64) -> String {
    let (amount, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{amount} {unit}{}", if amount == 1 { "" } else { "s" })
}

/// Without what would steer a terminal.
fn shown(source: &str) -> String {
    source.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cache::About;
    use super::super::digest::Digest;
    use super::*;

    fn tree(name: &str) -> Kept {
        let about =
            About { source: format!("/home/me/{name}"), created: 100, bytes: 5_713_920, entries: 280 };
        Kept { digest: Digest::of(name.as_bytes()), about, used: 3_000, in_use: false }
    }

    #[test]
    fn the_table_is_for_people() {
        let trees = [tree("a.tar"), Kept { in_use: true, ..tree("b\x1b[2J.tar") }];
        let text = table(&trees, 3_100);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").filter(|part| !part.is_empty()).collect()).collect();
        let trimmed = |line: usize| lines[line].iter().map(|part| part.trim()).collect::<Vec<_>>();
        assert_eq!(trimmed(1)[1..], ["5.4 MiB", "50 minutes ago", "1 minute ago", "/home/me/a.tar"]);
        assert_eq!(trimmed(2)[3..], ["now", "/home/me/b[2J.tar"]);
        assert_eq!(described(&trees)[0]["bytes"], 5_713_920);
    }

    #[test]
    fn sizes_and_spans_are_rounded() {
        assert_eq!([0, 1536, 1 << 20, 5 << 40].map(size), ["0.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 TiB"]);
        assert_eq!([1, 119, 7200, 200_000].map(span), ["1 second", "1 minute", "2 hours", "2 days"]);
    }

    #[test]
    fn trees_are_called_by_digest_or_by_source() {
        let tree = tree("a.tar");
        let called =
            |word: &str, path: &str| is_called(&tree, &TreeName { word: word.into(), path: path.into() });
        let hex = tree.digest.hex();
        assert!(called(&hex[..4], "/x") && called(&format!("sha256:{hex}"), "/x"));
        assert!(
            called("a.tar", "/home/me/a.tar") && !called("a.tar", "/home/you/a.tar") && !called("", "/x")
        );
    }
}
