//! A container's side of a network with a name: it joins before it is made, since it needs its addresses for that, and
//! hands its link over when that is there.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::gethostname;
use serde_json::Value;

use super::definition::{self, Definition};
use super::lease::Lease;
use super::protocol::{self, Join, Joined, Request};
use crate::config::{
    Config, GuestRoute, Life, LinkKind, LinkSpec, MacAddr, Membership, Network, Publish, Setup,
};
use crate::container::{self, Namespaces};
use crate::control::{self, Beyond};
use crate::error::{Context, Error, Result};
use crate::state;
use crate::sys::link::{self, LinkFd};

/// How long the gateway may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to let a container go.
const LEAVING: Duration = Duration::from_secs(1);
/// How often a gateway that ends just then is started again.
const ATTEMPTS: usize = 5;
/// Names of interfaces that are tried for a further network.
const MAX_INTERFACES: usize = 32;

/// A container that is in a network, or about to be.
#[derive(Debug)]
pub struct Member {
    network: String,
    socket: UnixStream,
    lease: Lease,
    definition: Definition,
    /// It wants to leave.
    leaves: Arc<AtomicBool>,
}

impl Drop for Member {
    /// Leaves the network, and returns when its place is free again.
    fn drop(&mut self) {
        self.leaves.store(true, Ordering::Relaxed);
        let left = self
            .socket
            .set_read_timeout(Some(LEAVING))
            .and_then(|()| self.socket.shutdown(Shutdown::Write))
            .and_then(|()| io::copy(&mut &self.socket, &mut io::sink()));
        // It has left all the same: at the latest when this process ends.
        let _ = left.and_then(|_| self.socket.shutdown(Shutdown::Both));
    }
}

impl Member {
    /// Joins the network of `membership` for the container of `config`; its ports are bound.
    pub fn join(config: &Config, membership: &Membership) -> Result<Self> {
        let Config { container, network, .. } = config;
        let name = config.name.clone().unwrap_or_else(|| short(&config.life).to_owned());
        let wanted = control::protocol::Request::Publish(network.publish.clone()).to_json();
        Self::enter(
            &membership.network,
            Join {
                names: own_names(&container.hostname, short(&config.life)),
                aliases: membership.aliases.clone(),
                ipv4: membership.ipv4,
                ipv6: membership.ipv6,
                mac: config.link.mac.map(|mac| mac.to_string()),
                allowed: network.host_access.allowed.clone(),
                host_loopback: network.host_access.loopback,
                ports: wanted.get("ports").cloned().unwrap_or_default(),
                container: name,
                pid: None,
            },
        )
    }

    fn enter(network: &str, join: Join) -> Result<Self> {
        let definition = definition::load(network)?;
        let request = Request::Join(Box::new(join));
        for _ in 0..ATTEMPTS {
            let socket = reach(network)?;
            let sent = protocol::send(&socket, &request);
            // One that has just ended hears nothing; the next one does.
            let Ok(()) = sent else { continue };
            socket.set_read_timeout(Some(PATIENCE)).context("cannot hear from", network)?;
            if let Some(lease) = protocol::outcome(&socket, network)? {
                let leaves = Arc::default();
                return Ok(Self { network: network.to_owned(), socket, lease, definition, leaves });
            }
        }
        Err(Error::new(
            "cannot reach",
            format!("the gateway of the network {network}"),
            "it ends again and again",
        ))
    }

    /// The network as it is to this container.
    pub fn network(&self) -> Network {
        self.definition.with_guest(self.lease.ipv4, self.lease.ipv6)
    }

    /// Its station.
    pub fn mac(&self) -> Option<MacAddr> {
        self.lease.mac.parse().ok()
    }

    /// `config` with this network and its link.
    pub fn configured(&self, config: &Config) -> Config {
        let link = LinkSpec { mac: self.mac(), queues: 1, queues_given: false, ..config.link.clone() };
        Config { network: self.network(), link, ..config.clone() }
    }

    /// Hands the container's link over; its published ports and where they are listened on.
    pub fn plug_in(&self, link: &LinkFd) -> Result<Vec<(Publish, Vec<SocketAddr>)>> {
        let about = || format!("the network {}", self.network);
        for note in &link.notes {
            tracing::info!("{note}");
        }
        link::send(link, &self.socket).context("cannot hand the link to", about())?;
        self.socket.set_read_timeout(Some(PATIENCE)).context("cannot wait for", about())?;
        let joined: Option<Joined> = protocol::outcome(&self.socket, &self.network)?;
        let Joined { ports, kept } =
            joined.ok_or_else(|| Error::new("cannot join", about(), "its gateway has ended"))?;
        for name in kept {
            tracing::warn!(
                "in the network {} the name {name} is another container's, who keeps it",
                self.network
            );
        }
        control::protocol::addresses(&ports)
    }

    /// By which further requests about its ports reach the gateway.
    pub fn beyond(&self) -> Result<Beyond> {
        let socket = self.socket.try_clone().context("cannot share", "the gateway's connection")?;
        Ok(Beyond::new(socket))
    }

    /// Says when the network is lost; the container goes on without.
    pub fn watch(&self) -> Result<()> {
        let socket = self.socket.try_clone().context("cannot share", "the gateway's connection")?;
        let (network, leaves) = (self.network.clone(), Arc::clone(&self.leaves));
        let watch = move || {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLHUP)];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            if leaves.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!(
                "the container has lost the network {network}: its gateway has ended, or has let it go; \
                 it goes on without"
            );
        };
        thread::Builder::new()
            .name("rnet-gateway".into())
            .spawn(watch)
            .map(drop)
            .context("cannot start", "a thread")
    }
}

/// What a container is called besides its name. The host's own name, which a copy of its root has, is no container's.
fn own_names(hostname: &str, id: &str) -> Vec<String> {
    let hosts = gethostname().unwrap_or_default();
    let hostname = Some(hostname).filter(|hostname| *hostname != hosts.to_string_lossy());
    hostname.into_iter().chain([id]).map(str::to_owned).collect()
}

fn short(life: &Life) -> &str {
    life.short_id()
}

/// Connects to the gateway of `network`, which is started if there is none.
fn reach(network: &str) -> Result<UnixStream> {
    let mut failed = None;
    for _ in 0..ATTEMPTS {
        if let Some(socket) = control::reach_network(network)? {
            return Ok(socket);
        }
        // Somebody else may start one at the same time: then ours has failed, and his is there.
        failed = start(network).err();
    }
    let never =
        || Error::new("cannot reach", format!("the gateway of the network {network}"), "it does not stay");
    Err(failed.unwrap_or_else(never))
}

/// Starts the gateway of `network`, and returns when it can be joined.
fn start(network: &str) -> Result<()> {
    const PROGRAM: &str = "/proc/self/exe";
    let mut command = Command::new(PROGRAM);
    command
        .arg0("rnet")
        .args(["network", "serve", network])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().context("cannot start", format!("the gateway of the network {network}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("rnet: error: ");
    Err(Error::new("cannot start", format!("the gateway of the network {network}"), said))
}

/// The containers in `network`; none if it has no gateway.
pub(super) fn members(network: &str) -> Result<Vec<Lease>> {
    Ok(ask(network, &Request::Members {})?.unwrap_or_default())
}

/// Takes `container` out of `network`.
pub(super) fn disconnect(network: &str, container: &str) -> Result<()> {
    let name = state::find(container).map_or_else(|_| container.to_owned(), |found| found.record.name);
    match ask::<Value>(network, &Request::Leave { container: name })? {
        Some(_) => Ok(()),
        None => Err(Error::new(
            "cannot leave",
            format!("the network {network}"),
            format!("{container} is not in it"),
        )),
    }
}

/// `None` if the network has no gateway.
fn ask<T: serde::de::DeserializeOwned>(network: &str, request: &Request) -> Result<Option<T>> {
    let Some(socket) = control::reach_network(network)? else { return Ok(None) };
    socket.set_read_timeout(Some(PATIENCE)).context("cannot ask", network)?;
    // One that has just ended has no members.
    protocol::send(&socket, request).map_or(Ok(None), |()| protocol::outcome(&socket, network))
}

/// Brings a container that runs into the network of `membership`, too, until it ends. No thread may have been started
/// before.
pub(super) fn connect(container: &str, membership: &Membership) -> Result<()> {
    let found = state::find(container)?;
    let state = &found.record.state;
    if !state.running {
        let cause = format!("it is {}", state.status);
        return Err(
            Error::new("cannot connect", container, cause).hint("only a running container has a network")
        );
    }
    let (namespaces, _) = Namespaces::of_process(state.pid, None)?;
    let member = Member::enter(
        &membership.network,
        Join {
            container: found.record.name.clone(),
            names: own_names(&found.record.config.hostname, found.record.short_id()),
            aliases: membership.aliases.clone(),
            ipv4: membership.ipv4,
            ipv6: membership.ipv6,
            ports: Value::Array(Vec::new()),
            pid: Some(state.pid),
            ..Join::default()
        },
    )?;
    let has_none = found.record.host_config.network_mode == "none";
    let link = member.further_link(&namespaces, has_none)?;
    member.plug_in(&link).map(drop)
}

impl Member {
    /// Makes an interface beside those that the container has. It leads to the network's own stations; `is_first`: and
    /// to everywhere else.
    fn further_link(&self, namespaces: &Namespaces, is_first: bool) -> Result<LinkFd> {
        let network = self.network();
        let v6 = self.lease.ipv6.zip(self.definition.ipv6_subnet);
        let v4 = IpNet::new_assert(self.lease.ipv4.into(), self.definition.subnet.prefix_len());
        let v6 = v6.map(|(address, subnet)| IpNet::new_assert(address.into(), subnet.prefix_len()));
        let via = is_first.then_some(self.definition.gateway);
        let everywhere = IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0);
        let route =
            via.map(|via| GuestRoute { destination: everywhere, via: Some(via.into()), metric: None });
        let addresses = [Some(v4), v6].into_iter().flatten().collect();
        let mut spec = LinkSpec {
            kind: LinkKind::Auto,
            ifname: String::new(),
            mac: self.mac(),
            queues: 1,
            queues_given: false,
            take_over: false,
            setup: Setup::Given { addresses, routes: route.into_iter().collect() },
            loopback: false,
            capture: None,
        };
        let mut last = None;
        for number in 0..MAX_INTERFACES {
            spec.ifname = format!("tap{number}");
            match container::join(namespaces, &spec, &network) {
                Ok(link) => return Ok(link),
                Err(error) if error.cause().contains("has an interface of that name") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new("cannot make", "an interface", "all names are taken")))
    }
}
