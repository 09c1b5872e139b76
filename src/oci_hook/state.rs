//! What a runtime tells its hooks (OCI runtime specification 1.2, "State" and "POSIX-platform Hooks"), and what the
//! container's annotations ask for; pure.
//!
//! Annotations are those of the state, or of the bundle's `config.json` where the state has none of that name. Only those
//! that begin with [`PREFIX`] count, and of these none may be unknown: a misspelt one would leave something open, or closed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::MAX_NAME_BYTES;

/// What names of annotations begin with; an option of `rnet attach` follows.
pub(super) const PREFIX: &str = "io.rnet.";
/// Short for `io.rnet.allow-host`.
const ALLOW: &str = "allow";
/// Digits of the ids that engines draw, and how many of them they show.
const DRAWN_ID_DIGITS: usize = 64;
const SHOWN_ID_DIGITS: usize = 12;

/// When a runtime calls its hooks, as far as rnet has something to do then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The namespaces stand; called outside of them. (`prestart` is an older name.)
    CreateRuntime,
    /// Called inside the namespaces, before the root is changed.
    CreateContainer,
    /// The container is gone.
    Poststop,
}

/// The state, on a hook's standard input.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct State {
    /// The container's id, unique at the runtime.
    pub(super) id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub(super) status: String,
    /// The container's first process; absent once it is gone. Inside its own namespaces it is 1, or 0 for some runtimes.
    pub(super) pid: Option<i32>,
    /// Directory of the container's `config.json`.
    pub(super) bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What matters of the bundle's `config.json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    hooks: Hooks,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
struct Hooks {
    #[serde(default, rename = "createContainer")]
    create_container: Vec<serde_json::Value>,
}

impl State {
    /// Understands the state.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if state.id.is_empty() {
            return Err("the id is empty".to_owned());
        }
        Ok(state)
    }

    /// The stage in which a runtime says this.
    pub(super) fn stage(&self) -> Stage {
        match (self.status.as_str(), self.pid) {
            ("stopped", _) | (_, None) => Stage::Poststop,
            (_, Some(..=1)) => Stage::CreateContainer,
            _ => Stage::CreateRuntime,
        }
    }

    /// The options that annotations ask for, by the names of `rnet attach`.
    pub(super) fn options(&self, bundle: &Bundle) -> Vec<(String, String)> {
        let mut annotations = bundle.annotations.clone();
        annotations.extend(self.annotations.clone());
        let options = annotations.into_iter().filter_map(|(name, value)| {
            let name = match name.strip_prefix(PREFIX)? {
                ALLOW => "allow-host",
                name => name,
            };
            Some((name.to_owned(), value))
        });
        options.collect()
    }

    /// What the container's network is called.
    pub(super) fn network_name(&self) -> Result<String, String> {
        network_name(&self.id)
    }
}

impl Bundle {
    /// Understands a `config.json`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// Whether the runtime will call a hook inside the container's namespaces.
    pub(super) fn has_hook_inside(&self) -> bool {
        !self.hooks.create_container.is_empty()
    }
}

/// A network's name for the container `id`: the id, with ids as engines draw them shortened to what they show of them.
pub(crate) fn network_name(id: &str) -> Result<String, String> {
    let is_digit = |character: char| character.is_ascii_hexdigit();
    let mut name = String::new();
    let mut rest = id;
    while !rest.is_empty() {
        let digits = rest.find(|character| !is_digit(character)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(digits);
        name += if run.len() == DRAWN_ID_DIGITS { &run[..SHOWN_ID_DIGITS] } else { run };
        let others = behind.find(is_digit).unwrap_or(behind.len());
        let (run, behind) = behind.split_at(others);
        name += run;
        rest = behind;
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if name.len() > MAX_NAME_BYTES || !starts || !name.bytes().all(allowed) {
        return Err(format!(
            "expected 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', with a letter or digit first"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = r#"{"ociVersion": "1.0.2", "id": "box", "status": "created", "pid": 4711,
        "bundle": "/b", "annotations": {"io.rnet.publish": "8080:80", "org.example": "1"}}"#;

    #[test]
    fn a_state_tells_its_stage() {
        for (from, to, stage) in [
            ("created", "created", Stage::CreateRuntime),
            ("created", "creating", Stage::CreateRuntime),
            ("4711", "0", Stage::CreateContainer),
            ("4711", "1", Stage::CreateContainer),
            ("created", "stopped", Stage::Poststop),
            (r#""pid": 4711,"#, "", Stage::Poststop),
        ] {
            let text = RUNNING.replacen(from, to, 1);
            assert_eq!(state(&text).stage(), stage, "{text}");
        }
    }

    #[test]
    fn annotations_of_the_state_come_before_those_of_the_bundle() {
        let bundle = r#"{"annotations": {"io.rnet.publish": "1:1", "io.rnet.allow": "127.0.0.1:5432"}, "root": {}}"#;
        let bundle = Bundle::parse(bundle.as_bytes()).expect("a bundle");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            state(RUNNING).options(&bundle),
            [pair("allow-host", "127.0.0.1:5432"), pair("publish", "8080:80")]
        );
    }

    #[test]
    fn hooks_inside_are_seen() {
        for (text, inside) in [
            (r#"{"hooks": {"createContainer": [{"path": "/rnet"}]}}"#, true),
            (r#"{"hooks": {"createContainer": [], "poststop": [{"path": "/rnet"}]}}"#, false),
            ("{}", false),
        ] {
            assert_eq!(Bundle::parse(text.as_bytes()).expect("a bundle").has_hook_inside(), inside, "{text}");
        }
    }

    #[test]
    fn what_is_no_state_is_refused_with_the_cause() {
        for (text, cause) in [
            ("", "EOF"),
            ("[]", "invalid length"),
            (r#"{"id": "", "status": "stopped", "bundle": "/"}"#, "the id is empty"),
            (r#"{"status": "stopped", "bundle": "/"}"#, "missing field `id`"),
            (r#"{"id": "box", "status": "stopped"}"#, "missing field `bundle`"),
            (r#"{"id": "box", "status": "stopped", "bundle": "/", "pid": "1"}"#, "expected i32"),
        ] {
            let error = State::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(cause), "{error}");
        }
        assert!(Bundle::parse(br#"{"annotations": {"io.rnet.mtu": 1500}}"#).is_err());
    }

    #[test]
    fn drawn_ids_are_shortened_as_engines_show_them() {
        let drawn = "0123456789abcdef".repeat(4);
        for (id, name) in [
            (drawn.as_str(), Some("0123456789ab")),
            (&format!("default-{drawn}"), Some("default-0123456789ab")),
            (&format!("{drawn}0"), None),
            ("box_1.a-b", Some("box_1.a-b")),
            ("-box", None),
            ("a/b", None),
            ("a b", None),
            ("\u{e4}", None),
            (&"x".repeat(MAX_NAME_BYTES + 1), None),
        ] {
            assert_eq!(network_name(id).ok().as_deref(), name, "{id}");
        }
    }

    fn state(text: &str) -> State {
        State::parse(text.as_bytes()).expect("a state")
    }
}
