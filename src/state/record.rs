//! The record of a container: what `container.json` says, and `rnet inspect` prints.
//!
//! Names and nesting are those of `docker inspect` where docker has the thing; what only rnet knows stands under
//! `Rnet`. Members that are missing have their default, and unknown ones are ignored, so that programs of different
//! versions can read each other's. Arguments, variables and paths that are not UTF-8 are written with replacement
//! characters.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::privileges::Privileges;
use super::time::Timestamp;
use crate::config::{
    self, Allowance, Identity, MacAddr, Mapping, Network, NetworkMode, Overlay, Publish, RootFs, Swap,
};

/// All that is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// By what it and its network are called.
    pub name: String,
    /// When its set-up began.
    pub created: Timestamp,
    /// How it is.
    pub state: State,
    /// How often its command was started again.
    pub restart_count: u32,
    /// Where its output is, if it is kept; empty otherwise.
    pub log_path: String,
    /// What it was told to be.
    pub config: Config,
    /// What rnet was told to do with it.
    pub host_config: HostConfig,
    /// Its network.
    pub network_settings: NetworkSettings,
    /// What of the host, or of memory, is mounted besides the root.
    pub mounts: Vec<Mount>,
    /// What only rnet has.
    pub rnet: Rnet,
}

/// How a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct State {
    /// In one word.
    pub status: Status,
    /// The command has been started and has not ended; true of a paused one, too.
    pub running: bool,
    /// Its processes are stopped.
    pub paused: bool,
    /// Its command has ended and will be started again.
    pub restarting: bool,
    /// The kernel has killed one of its processes for want of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Its first process, as the host numbers it; 0 if there is none.
    pub pid: i32,
    /// How the command ended: its status, or 128 and the number of the signal.
    pub exit_code: i32,
    /// What went wrong beyond that.
    pub error: String,
    /// When the command was last started.
    pub started_at: Timestamp,
    /// When it last ended.
    pub finished_at: Timestamp,
}

/// A container's state in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being set up.
    #[default]
    Created,
    /// Its command runs.
    Running,
    /// Its processes are stopped.
    Paused,
    /// It waits to be started again.
    Restarting,
    /// It has ended.
    Exited,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        })
    }
}

/// What a container was told to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// Its host name.
    pub hostname: String,
    /// The command and its arguments.
    pub cmd: Vec<String>,
    /// Its whole environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Who its command is, as `--user` has it; empty is root.
    pub user: String,
    /// What `rnet stop` sends, by number.
    pub stop_signal: i32,
    /// How many seconds it may take to end then.
    pub stop_timeout: u64,
    /// Its working directory; empty is that of the root filesystem's kind: `/`, or the caller's own.
    pub working_dir: String,
}

/// What rnet was told to do with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    /// Nothing of it is kept when it has ended.
    pub auto_remove: bool,
    /// Processes that it may have at most, if they are limited.
    pub pids_limit: Option<u64>,
    /// When its command is started again.
    pub restart_policy: RestartPolicy,
    /// Writes to the root are refused.
    pub readonly_rootfs: bool,
    /// Bytes of memory that it may use; 0 is no limit, as in all that follow.
    pub memory: u64,
    /// Memory and swap together; -1 is all swap.
    pub memory_swap: i64,
    /// Processors' time, in billionths of one.
    pub nano_cpus: u64,
    /// The processors that it may use; empty is all.
    pub cpuset_cpus: String,
    /// Whose network it is, as `--net` has it.
    pub network_mode: String,
}

/// When a command that has ended is started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// `no`, `on-failure` or `always`.
    pub name: String,
    /// How often at most; 0 is no limit.
    pub maximum_retry_count: u32,
}

/// A container's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkSettings {
    /// Published ports by the guest's port, `80/tcp`, with where each is listened on.
    pub ports: BTreeMap<String, Vec<PortBinding>>,
    /// The guest's IPv4 address.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// The guest's IPv6 address; empty if it has none.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    /// The gateway's IPv4 address.
    pub gateway: String,
    /// The guest's Ethernet address.
    pub mac_address: String,
}

/// Where a published port is listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortBinding {
    /// The host's address.
    pub host_ip: String,
    /// The host's port, as a word.
    pub host_port: String,
}

/// What is mounted besides the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Mount {
    /// `bind` or `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The host's file or directory; empty for memory.
    pub source: String,
    /// Where it is inside.
    pub destination: String,
    /// Writes are allowed.
    #[serde(rename = "RW")]
    pub rw: bool,
}

/// What only rnet has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Rnet {
    /// The rnet that keeps the container: who signals it signals the container.
    pub keeper: Process,
    /// The container's first process.
    pub first: Process,
    /// Paused by the freezer of its cgroup, and not by signals.
    pub frozen: bool,
    /// How long was waited before the command was last started again.
    pub pause_ms: u64,
    /// The root filesystem, in words.
    pub rootfs: String,
    /// What its command may do.
    pub privileges: Privileges,
}

/// A process as it can be told from a later one with the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Process {
    /// Its number; 0 for none.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine's start (proc_pid_stat(5), field 22).
    pub start_time: u64,
}

impl Record {
    /// The record of a container that is about to be made by `config`, and is called `name`.
    pub fn new(config: &config::Config, name: &str) -> Self {
        let container = &config.container;
        let allowance = &container.allowance;
        Self {
            id: config.life.id.clone(),
            name: name.to_owned(),
            created: Timestamp::now(),
            config: Config {
                hostname: container.hostname.clone(),
                cmd: container.command.iter().map(|word| text(word)).collect(),
                env: container.env.iter().map(variable).collect(),
                user: user(&container.identity),
                stop_signal: config.life.stop_signal,
                stop_timeout: config.life.stop_timeout.as_secs(),
                working_dir: container.workdir.as_deref().map(path).unwrap_or_default(),
            },
            host_config: HostConfig {
                auto_remove: config.life.remove,
                pids_limit: allowance.processes,
                restart_policy: config.life.restart.into(),
                readonly_rootfs: container.read_only,
                memory: allowance.memory_bytes.unwrap_or_default(),
                memory_swap: memory_and_swap(allowance),
                nano_cpus: allowance.cpu_quota_us.map_or(0, nano_cpus),
                cpuset_cpus: allowance.cpus.clone().unwrap_or_default(),
                network_mode: config.mode.to_string(),
            },
            network_settings: NetworkSettings::new(config),
            mounts: mounts(container),
            rnet: Rnet {
                rootfs: rootfs(&container.rootfs),
                privileges: Privileges::of(&container.privileges),
                ..Rnet::default()
            },
            ..Self::default()
        }
    }

    /// Says what it became, with what its image has added. Its root is still called as it was asked for.
    pub fn settle(&mut self, config: &config::Config) {
        let settled = Self::new(config, &self.name);
        self.config = settled.config;
        self.mounts = settled.mounts;
    }

    /// The first digits of the id.
    pub fn short_id(&self) -> &str {
        self.id.get(..config::Life::SHORT_ID).unwrap_or(&self.id)
    }

    /// Its command is said to have been started, and not to have ended for good.
    pub fn is_alive(&self) -> bool {
        match self.state.status {
            Status::Running | Status::Paused | Status::Restarting => true,
            Status::Created | Status::Exited => false,
        }
    }

    /// Says that the command has started.
    pub fn started(&mut self) {
        self.become_status(Status::Running);
        self.state.started_at = Timestamp::now();
    }

    /// Says that its processes stand still, or go on again.
    pub fn paused(&mut self, paused: bool, frozen: bool) {
        self.become_status(if paused { Status::Paused } else { Status::Running });
        self.rnet.frozen = paused && frozen;
    }

    /// Says that the command has ended with `code`, and why if that is not all.
    pub fn ended(&mut self, code: u8, error: &str) {
        self.finish(Status::Exited, code);
        error.clone_into(&mut self.state.error);
        self.rnet.keeper = Process::default();
    }

    /// Says that the command has ended with `code`, and will be started again after a `pause`.
    pub fn restarts_after(&mut self, code: u8, pause: Duration) {
        self.finish(Status::Restarting, code);
        self.rnet.pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    }

    /// Says that what has ended is about to be started again, as `next` says.
    pub(super) fn resume(&mut self, next: Self) {
        let Self { created, restart_count, state, log_path, rnet, .. } = std::mem::replace(self, next);
        self.created = created;
        self.restart_count = restart_count + 1;
        self.state = state;
        self.log_path = log_path;
        self.rnet.pause_ms = rnet.pause_ms;
    }

    fn finish(&mut self, status: Status, code: u8) {
        self.become_status(status);
        self.state.exit_code = code.into();
        self.state.finished_at = Timestamp::now();
        self.state.pid = 0;
        self.network_settings.ports.clear();
        self.rnet.first = Process::default();
    }

    fn become_status(&mut self, status: Status) {
        self.state.status = status;
        self.state.running = matches!(status, Status::Running | Status::Paused);
        self.state.paused = status == Status::Paused;
        self.state.restarting = status == Status::Restarting;
    }
}

impl From<config::Restart> for RestartPolicy {
    fn from(restart: config::Restart) -> Self {
        let (name, most) = match restart {
            config::Restart::No => ("no", None),
            config::Restart::OnFailure { most } => ("on-failure", most),
            config::Restart::Always => ("always", None),
        };
        Self { name: name.to_owned(), maximum_retry_count: most.unwrap_or_default() }
    }
}

impl NetworkSettings {
    /// Those of `config`; one that is to join a network with a name has none as yet.
    fn new(config: &config::Config) -> Self {
        match config.mode {
            NetworkMode::User => Self::of(&config.network, config.link.mac),
            NetworkMode::Named(_) | NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => {
                Self::default()
            }
        }
    }

    /// Those of a guest of `network`, without ports.
    pub fn of(network: &Network, mac: Option<MacAddr>) -> Self {
        Self {
            ports: BTreeMap::new(),
            ip_address: network.ipv4.map(|plan| plan.guest.to_string()).unwrap_or_default(),
            global_ipv6_address: network.ipv6.map(|plan| plan.guest.to_string()).unwrap_or_default(),
            gateway: network.ipv4.map(|plan| plan.gateway.to_string()).unwrap_or_default(),
            mac_address: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        }
    }

    /// Says that `publish` is listened on at `address`.
    pub fn listens(&mut self, publish: &Publish, address: SocketAddr) {
        let port = format!("{}/{}", publish.guest_port, publish.transport);
        self.ports.entry(port).or_default().push(address.into());
    }
}

impl From<SocketAddr> for PortBinding {
    fn from(address: SocketAddr) -> Self {
        Self { host_ip: address.ip().to_string(), host_port: address.port().to_string() }
    }
}

fn mounts(container: &config::Container) -> Vec<Mount> {
    let binds = container.volumes.iter().map(|volume| Mount {
        kind: "bind".to_owned(),
        source: path(&volume.source),
        destination: path(&volume.target),
        rw: !volume.read_only,
    });
    let memory = container.tmpfs.iter().map(|tmpfs| Mount {
        kind: "tmpfs".to_owned(),
        source: String::new(),
        destination: path(&tmpfs.target),
        rw: !tmpfs.read_only,
    });
    binds.chain(memory).collect()
}

/// Docker counts both together.
fn memory_and_swap(allowance: &Allowance) -> i64 {
    match (allowance.memory_bytes, allowance.swap) {
        (_, Some(Swap::Unlimited)) => -1,
        (Some(memory), Some(Swap::Bytes(swap))) => {
            i64::try_from(memory.saturating_add(swap)).unwrap_or(i64::MAX)
        }
        _ => 0,
    }
}

fn nano_cpus(quota_us: u64) -> u64 {
    quota_us.saturating_mul(1_000_000_000 / Allowance::CPU_PERIOD_US)
}

/// The root filesystem as the command line would name it.
fn rootfs(rootfs: &RootFs) -> String {
    match rootfs {
        RootFs::Directory(directory) => path(directory),
        RootFs::Overlay(Overlay { lower, .. }) => {
            lower.first().map(|top| path(top) + ":O").unwrap_or_default()
        }
        RootFs::HostCopy | RootFs::Host => "/".to_owned(),
        RootFs::Empty => String::new(),
    }
}

fn user(identity: &Identity) -> String {
    match (&identity.user, &identity.mapping) {
        (Some(user), _) => user.to_string(),
        (None, Mapping::KeepId) => format!("{}:{}", Uid::current(), Gid::current()),
        (None, Mapping::Single | Mapping::Auto | Mapping::Given { .. }) => String::new(),
    }
}

fn variable((name, value): &(OsString, OsString)) -> String {
    format!("{}={}", name.display(), value.display())
}

fn text(word: &OsStr) -> String {
    word.to_string_lossy().into_owned()
}

fn path(path: &Path) -> String {
    text(path.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_called_as_docker_calls_them() {
        let mut record = Record { name: "box".to_owned(), ..Record::default() };
        record.state.pid = 7;
        record.started();
        let json = serde_json::to_value(&record).expect("plain data");
        for (pointer, value) in [
            ("/Name", serde_json::json!("box")),
            ("/State/Status", "running".into()),
            ("/State/Running", true.into()),
            ("/State/OOMKilled", false.into()),
            ("/State/Pid", 7.into()),
            ("/State/FinishedAt", "0001-01-01T00:00:00Z".into()),
            ("/RestartCount", 0.into()),
            ("/NetworkSettings/IPAddress", "".into()),
            ("/HostConfig/AutoRemove", false.into()),
            ("/HostConfig/Memory", 0.into()),
            ("/HostConfig/NanoCpus", 0.into()),
            ("/HostConfig/CpusetCpus", "".into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
        assert_eq!(serde_json::from_value::<Record>(json).expect("its own"), record);
    }

    #[test]
    fn limits_are_told_in_dockers_units() {
        let allowance = |swap| Allowance { memory_bytes: Some(100), swap, ..Allowance::default() };
        assert_eq!(memory_and_swap(&allowance(Some(Swap::Bytes(20)))), 120);
        assert_eq!(memory_and_swap(&allowance(Some(Swap::Unlimited))), -1);
        assert_eq!(memory_and_swap(&Allowance::default()), 0);
        assert_eq!(nano_cpus(50_000), 500_000_000);
    }

    #[test]
    fn records_of_other_versions_are_understood() {
        let text = r#"{"Id": "ab", "State": {"Status": "exited", "ExitCode": 3, "New": 1}, "Future": []}"#;
        let record: Record = serde_json::from_str(text).expect("what is missing has a default");
        assert_eq!(
            (record.state.status, record.state.exit_code, record.is_alive()),
            (Status::Exited, 3, false)
        );
    }
}
