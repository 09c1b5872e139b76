//! `rnet run`, put together: published ports, container, link, worker, command, in an order in which nothing
//! is half done when a step fails.

mod again;
mod background;
mod files;
mod keep;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::process;

pub use self::keep::run;
use crate::config::{
    Config, EtcFiles, LinkKind, LogLevel, MacAddr, Membership, Network, NetworkMode, Publish, Restart,
};
use crate::container::{self, Connection, Launch, Namespaces, Pause, Running};
use crate::control::{self, Desk, Place, Socket};
use crate::error::{Error, Result};
use crate::io::ports::Ports;
use crate::network::Member;
use crate::serve::{self, Alarm, FileLimit, Prepared, Serving};
use crate::state::State;
use crate::sys::link::LinkFd;
use crate::sys::memory;
use crate::{etc, state};

/// A container with its network, ready for its command.
pub struct Session {
    running: Running,
    network: Carried,
}

/// What happens to a container.
enum Event<'a> {
    /// Its processes stand still, or go on.
    Paused(Pause),
    /// All is over.
    Ended(&'a Running),
}

/// What rnet does for a container's network.
enum Carried {
    /// All that passes goes through here.
    Served(Box<Serving>),
    /// All that passes goes through the gateway of a network with a name.
    Beyond {
        member: Box<Member>,
        published: Vec<(Publish, Vec<SocketAddr>)>,
        ports: Ports,
        _place: Option<Place>,
    },
    /// Nothing: others carry it, or nobody. What it is called leads to an empty list of ports.
    Not { ports: Ports, _place: Option<Place> },
}

impl Session {
    /// Does everything but start the command. No thread may have been started before. `seed` feeds the gateway's
    /// random choices.
    pub fn prepare(config: &Config, seed: u64) -> Result<Self> {
        let place = Place::of(config.name.as_deref(), process::id(), None)?;
        Preparation { place, stderr: None, config, seed }.session()
    }

    /// Prints the ports that the kernel chose, unless the user wants silence.
    fn announce(&self, level: LogLevel) {
        if let Carried::Served(serving) = &self.network {
            serving.announce(level);
        }
    }

    /// The published ports with the addresses that they got.
    pub fn published(&self) -> Vec<(Publish, SocketAddr)> {
        if let Carried::Beyond { published, .. } = &self.network {
            let each = published.iter();
            return each.flat_map(|(publish, at)| at.iter().map(|address| (*publish, *address))).collect();
        }
        let ports = self.ports().list().into_iter();
        ports
            .flat_map(|port| port.addresses.into_iter().map(move |address| (port.publish, address)))
            .collect()
    }

    /// The network with a name that it is in, as it is to it, and its station.
    fn joined(&self) -> Option<(Network, Option<MacAddr>)> {
        match &self.network {
            Carried::Beyond { member, .. } => Some((member.network(), member.mac())),
            Carried::Served(_) | Carried::Not { .. } => None,
        }
    }

    /// The published ports; more can be added if rnet carries the network.
    pub fn ports(&self) -> &Ports {
        match &self.network {
            Carried::Served(serving) => serving.ports(),
            Carried::Beyond { ports, .. } | Carried::Not { ports, .. } => ports,
        }
    }

    /// Answers requests at `socket` too, if rnet carries the network.
    pub fn answer_at_path(&mut self, socket: Socket) -> Result<()> {
        match &mut self.network {
            Carried::Served(serving) => serving.answer_at_path(socket),
            Carried::Beyond { .. } | Carried::Not { .. } => Ok(()),
        }
    }

    /// The kind of link that was made, if there is one.
    pub fn link(&self) -> Option<LinkKind> {
        match &self.network {
            Carried::Served(serving) => Some(serving.link()),
            Carried::Beyond { .. } | Carried::Not { .. } => None,
        }
    }

    /// Starts the command.
    pub fn start(&mut self) -> Result<()> {
        self.running.start()
    }

    /// Forwards signals until the command ends and what it sent is delivered; its exit status.
    pub fn wait(self) -> Result<u8> {
        self.finish(&mut |_| Ok(()))
    }

    /// The same; `tell` hears of what happens.
    fn finish(mut self, tell: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<u8> {
        // What comes now is little, and may take long.
        memory::unmap_used_code();
        let status = self.running.wait_telling(&mut |pause| tell(Event::Paused(pause)));
        let served = match self.network {
            Carried::Served(serving) => {
                let drained = self.running.wait_unless_told_to_end(serving.drain());
                drained.and(serving.stop())
            }
            Carried::Beyond { .. } | Carried::Not { .. } => Ok(()),
        };
        tell(Event::Ended(&self.running))?;
        served.and(status)
    }
}

/// What a session is made from.
struct Preparation<'a> {
    place: Option<Place>,
    /// The command's standard error, if it runs in the background.
    stderr: Option<BorrowedFd<'a>>,
    config: &'a Config,
    /// Feeds the gateway's random choices.
    seed: u64,
}

impl Preparation<'_> {
    fn session(self) -> Result<Session> {
        let config = self.config;
        match &config.mode {
            NetworkMode::User => self.served(),
            NetworkMode::Named(membership) => self.joined(membership),
            NetworkMode::None => self.not_served(Connection::Alone, &etc::files_alone(config)),
            NetworkMode::Host => self.not_served(Connection::Hosts, &files::of_host(config)),
            NetworkMode::Container(whose) => {
                let pid = process_of(whose)?;
                let (namespaces, _) = Namespaces::of_process(pid, None)?;
                self.not_served(Connection::Shared(&namespaces), &files::of_process(config, pid))
            }
        }
    }

    fn served(self) -> Result<Session> {
        let files = FileLimit::read()?;
        files.raise()?;
        let Config { network, link: spec, .. } = self.config;
        let prepared = Prepared::new(network)?;
        let etc = etc::files(self.config, prepared.resolv_conf());
        let mut running = self.launch(Connection::Linked { link: spec, network }, &etc, &files)?;
        let link = taken_link(&mut running)?;
        let factory = running.take_factory();
        // A restart executes rnet anew, which then has to make namespaces.
        if self.config.life.restart == Restart::No {
            serve::confine_process();
        }
        let mut serving = prepared.serve(network, spec, link, factory, self.seed, Alarm::Failure)?;
        self.place.map_or(Ok(()), |place| serving.answer_at(place, Some(running.commands())))?;
        Ok(Session { running, network: Carried::Served(Box::new(serving)) })
    }

    fn joined(self, membership: &Membership) -> Result<Session> {
        let files = FileLimit::read()?;
        let member = Member::join(self.config, membership)?;
        let config = member.configured(self.config);
        let prepared = Prepared::new(&config.network)?;
        let etc = etc::files(&config, prepared.resolv_conf());
        let connection = Connection::Linked { link: &config.link, network: &config.network };
        let mut running = self.launch(connection, &etc, &files)?;
        let published = member.plug_in(&taken_link(&mut running)?)?;
        if config.life.restart == Restart::No {
            serve::confine_process();
        }
        member.watch()?;
        let ports = Ports::new(Vec::new(), Vec::new(), false);
        let beyond = Some(member.beyond()?);
        let desk = Desk { ports: ports.clone(), container: Some(running.commands()), beyond };
        self.place.iter().try_for_each(|place| control::serve(place, desk.clone()))?;
        let network = Carried::Beyond { member: Box::new(member), published, ports, _place: self.place };
        Ok(Session { running, network })
    }

    fn not_served(self, connection: Connection<'_>, etc: &EtcFiles) -> Result<Session> {
        let running = self.launch(connection, etc, &FileLimit::read()?)?;
        let ports = Ports::new(Vec::new(), Vec::new(), false);
        let desk = Desk { ports: ports.clone(), container: Some(running.commands()), beyond: None };
        self.place.iter().try_for_each(|place| control::serve(place, desk.clone()))?;
        Ok(Session { running, network: Carried::Not { ports, _place: self.place } })
    }

    /// Launches with the limit on open files that the command shall have.
    fn launch(&self, network: Connection<'_>, etc: &EtcFiles, files: &FileLimit) -> Result<Running> {
        files.restore()?;
        let container = &self.config.container;
        let running = container::launch(&Launch { container, network, etc, stderr: self.stderr })?;
        files.raise()?;
        Ok(running)
    }
}

fn taken_link(running: &mut Running) -> Result<LinkFd> {
    let kept = || Error::new("cannot take over", "the guest's link", "the container kept it");
    running.take_link().ok_or_else(kept)
}

/// The first process of the container `whose`, or the process of that number.
fn process_of(whose: &str) -> Result<i32> {
    let found = state::find(whose);
    match (whose.parse::<i32>(), found) {
        // The beginning of somebody's id may be a number, too.
        (Ok(pid), found) if !found.as_ref().is_ok_and(|found| found.record.name == whose) => Ok(pid),
        (_, found) => match found?.record.state {
            State { running: true, pid, .. } => Ok(pid),
            State { status, .. } => {
                let cause = format!("it is {status}, and only a running container has a network");
                Err(Error::new("cannot join the network of", whose, cause))
            }
        },
    }
}
