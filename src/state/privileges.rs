//! What a container's command may do, on record: so that what joins it later may do no more.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, Capabilities, Limit, Resource, Seccomp, SelinuxLabel};

/// [`config::Privileges`] as the record has them; the default is those of a container of which nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Privileges {
    /// One bit for each at its number, in hexadecimal.
    capabilities: String,
    no_new_privileges: bool,
    seccomp: Calls,
    ulimits: Vec<Ulimit>,
    apparmor: Option<String>,
    #[serde(with = "Selinux")]
    selinux: SelinuxLabel,
}

/// The shape of a [`SelinuxLabel`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "SelinuxLabel", rename_all = "PascalCase")]
struct Selinux {
    user: Option<String>,
    role: Option<String>,
    kind: Option<String>,
    level: Option<String>,
}

/// Which system calls it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Calls {
    #[default]
    Docker,
    Unconfined,
    Profile(PathBuf),
}

/// One limit, in docker's words; -1 is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
}

impl Default for Privileges {
    fn default() -> Self {
        Self::of(&config::Privileges::default())
    }
}

impl Privileges {
    /// What is put on record of `privileges`.
    pub(super) fn of(privileges: &config::Privileges) -> Self {
        let ulimits = privileges.limits.iter().map(|limit| Ulimit {
            name: limit.resource.name().to_owned(),
            soft: limit.soft.cast_signed(),
            hard: limit.hard.cast_signed(),
        });
        Self {
            capabilities: format!("{:016x}", privileges.capabilities.bits()),
            no_new_privileges: privileges.no_new_privileges,
            seccomp: match &privileges.seccomp {
                Seccomp::Docker => Calls::Docker,
                Seccomp::Unconfined => Calls::Unconfined,
                Seccomp::Profile(path) => Calls::Profile(path.clone()),
            },
            ulimits: ulimits.collect(),
            apparmor: privileges.apparmor.clone(),
            selinux: privileges.selinux.clone(),
        }
    }

    /// What was put on record. What cannot be understood is not granted.
    pub fn granted(&self) -> config::Privileges {
        let limits = self.ulimits.iter().filter_map(|ulimit| {
            let resource = Resource::named(&ulimit.name)?;
            Some(Limit { resource, soft: ulimit.soft.cast_unsigned(), hard: ulimit.hard.cast_unsigned() })
        });
        config::Privileges {
            capabilities: Capabilities::from_bits(u64::from_str_radix(&self.capabilities, 16).unwrap_or(0)),
            no_new_privileges: self.no_new_privileges,
            masks: true,
            seccomp: match &self.seccomp {
                Calls::Docker => Seccomp::Docker,
                Calls::Unconfined => Seccomp::Unconfined,
                Calls::Profile(path) => Seccomp::Profile(Path::new("/").join(path)),
            },
            limits: limits.collect(),
            apparmor: self.apparmor.clone(),
            selinux: self.selinux.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_what_was_recorded() {
        let limit = Limit { resource: Resource::OpenFiles, soft: 1024, hard: Limit::NONE };
        let given = config::Privileges {
            capabilities: Capabilities::default().without(Capabilities::named("CHOWN").expect("known")),
            seccomp: Seccomp::Profile("/etc/profile.json".into()),
            limits: vec![limit],
            apparmor: Some("box".to_owned()),
            ..config::Privileges::default()
        };
        for given in [given, config::Privileges { masks: true, ..config::Privileges::unconfined() }] {
            let text = serde_json::to_string(&Privileges::of(&given)).expect("plain data");
            let read: Privileges = serde_json::from_str(&text).expect("its own");
            assert_eq!(read.granted(), given, "{text}");
        }
    }

    #[test]
    fn a_record_without_a_word_about_it_grants_the_default() {
        let read: Privileges = serde_json::from_str("{}").expect("all have a default");
        assert_eq!(read.granted(), config::Privileges::default());
    }
}
