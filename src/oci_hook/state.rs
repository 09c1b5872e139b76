//! What a runtime tells its hooks (OCI runtime specification 1.2, "State" and "POSIX-platform Hooks"), and what the
//! container's annotations ask for; pure.
//!
//! Annotations are those of the state, or of the bundle's `config.json` where the state has none of that name. Only
//! those that begin with the hook's prefix count, and of these none may be unknown: a misspelt one would leave
//! something open, or closed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use crate::config::{HookStage, container_name};

/// Short for the option `allow-host`.
const ALLOW: &str = "allow";

/// The state, on a hook's standard input.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct State {
    /// The container's id, unique at the runtime.
    pub(super) id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub(super) status: String,
    /// The container's first process; absent once it is gone. Inside its own namespaces it is 1, or 0 for some
    /// runtimes.
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
    pub(super) fn stage(&self) -> HookStage {
        match (self.status.as_str(), self.pid) {
            ("stopped", _) | (_, None) => HookStage::Poststop,
            (_, Some(..=1)) => HookStage::CreateContainer,
            _ => HookStage::CreateRuntime,
        }
    }

    /// The options that annotations ask for whose names begin with `prefix`, by the names of `rnet attach`.
    pub(super) fn options(&self, bundle: &Bundle, prefix: &str) -> Vec<(String, String)> {
        let mut annotations = bundle.annotations.clone();
        annotations.extend(self.annotations.clone());
        let options = annotations.into_iter().filter_map(|(name, value)| {
            let name = match name.strip_prefix(prefix)? {
                ALLOW => "allow-host",
                name => name,
            };
            Some((name.to_owned(), value))
        });
        options.collect()
    }

    /// What the container's network is called.
    pub(super) fn network_name(&self) -> Result<String, String> {
        container_name(&self.id)
    }

    /// What the network remembers of its container: ids of two runtimes may be the same, or shortened to the same name.
    pub(super) fn memo(&self) -> String {
        json!({"oci": {"id": self.id, "bundle": self.bundle}}).to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = r#"{"ociVersion": "1.0.2", "id": "box", "status": "created", "pid": 4711,
        "bundle": "/b", "annotations": {"io.rnet.publish": "8080:80", "rnet.mtu": "1500", "org.example": "1"}}"#;

    #[test]
    fn a_state_tells_its_stage() {
        for (from, to, stage) in [
            ("created", "created", HookStage::CreateRuntime),
            ("created", "creating", HookStage::CreateRuntime),
            ("4711", "0", HookStage::CreateContainer),
            ("4711", "1", HookStage::CreateContainer),
            ("created", "stopped", HookStage::Poststop),
            (r#""pid": 4711,"#, "", HookStage::Poststop),
        ] {
            let text = RUNNING.replacen(from, to, 1);
            assert_eq!(state(&text).stage(), stage, "{text}");
        }
    }

    #[test]
    fn a_memo_is_the_same_at_every_stage_and_for_no_other_container() {
        let stopped = RUNNING.replace("created", "stopped").replace(r#""pid": 4711,"#, "");
        assert_eq!(state(&stopped).memo(), state(RUNNING).memo());
        for (from, to) in [("box", "box2"), ("/b", "/b2")] {
            assert_ne!(state(&RUNNING.replace(from, to)).memo(), state(RUNNING).memo(), "{to}");
        }
    }

    #[test]
    fn annotations_of_the_state_come_before_those_of_the_bundle() {
        let bundle =
            r#"{"annotations": {"io.rnet.publish": "1:1", "io.rnet.allow": "127.0.0.1:5432"}, "root": {}}"#;
        let bundle = Bundle::parse(bundle.as_bytes()).expect("a bundle");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            state(RUNNING).options(&bundle, "io.rnet."),
            [pair("allow-host", "127.0.0.1:5432"), pair("publish", "8080:80")]
        );
        assert_eq!(state(RUNNING).options(&bundle, "rnet."), [pair("mtu", "1500")]);
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

    fn state(text: &str) -> State {
        State::parse(text.as_bytes()).expect("a state")
    }
}
