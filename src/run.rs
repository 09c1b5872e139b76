//! `rnet run`, put together: published ports, container, link, worker, command, in an order in which nothing
//! is half done when a step fails.

mod files;

use std::net::SocketAddr;
use std::process;

use crate::config::{Config, EtcFiles, LinkKind, Membership, NetworkMode, Publish};
use crate::container::{self, Connection, Launch, Namespaces, Running};
use crate::control::{self, Desk, Place, Socket};
use crate::error::{Error, Result};
use crate::io::ports::Ports;
use crate::network::Member;
use crate::serve::{Alarm, FileLimit, Prepared, Serving};
use crate::state::{Kept, Record, State};
use crate::sys::link::LinkFd;
use crate::sys::memory;
use crate::{attach, etc, state};

/// A container with its network, ready for its command.
pub struct Session {
    running: Running,
    network: Carried,
}

/// What rnet does for a container's network.
enum Carried {
    /// All that passes goes through here.
    Served(Box<Serving>),
    /// All that passes goes through the gateway of a network with a name.
    Beyond {
        _member: Box<Member>,
        published: Vec<(Publish, Vec<SocketAddr>)>,
        ports: Ports,
        _place: Option<Place>,
    },
    /// Nothing: others carry it, or nobody. What it is called leads to an empty list of ports.
    Not { ports: Ports, _place: Option<Place> },
}

/// Runs the command of `config` in a container that is on record; its exit status by docker's convention.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    state::sweep();
    let place = Place::of(config.name.as_deref(), process::id(), None)?;
    // It goes after the session, on the way of an error too.
    let mut kept = place.as_ref().map(|place| Kept::begin(config, place)).transpose()?;
    let mut session = Session::prepare_at(place, config, seed)?;
    if let Carried::Served(serving) = &session.network {
        serving.announce(config.log.level);
    }
    if let Some(kept) = &mut kept {
        session.describe(kept)?;
    }
    session.start()?;
    if let Some(kept) = &mut kept {
        kept.change(Record::started)?;
    }
    config.life.pid_file.as_deref().map_or(Ok(()), attach::write_pid)?;
    let status = session.wait();
    if let Some(kept) = kept {
        let error = status.as_ref().err().map(ToString::to_string).unwrap_or_default();
        kept.end(status.as_ref().map_or_else(Error::code, |status| *status), &error)?;
    }
    status
}

impl Session {
    /// Does everything but start the command. No thread may have been started before. `seed` feeds the gateway's
    /// random choices.
    pub fn prepare(config: &Config, seed: u64) -> Result<Self> {
        Self::prepare_at(Place::of(config.name.as_deref(), process::id(), None)?, config, seed)
    }

    /// The same with a place that is there already.
    fn prepare_at(place: Option<Place>, config: &Config, seed: u64) -> Result<Self> {
        let files = FileLimit::read()?;
        files.raise()?;
        match &config.mode {
            NetworkMode::User => Self::served(config, place, &files, seed),
            NetworkMode::Named(membership) => Self::joined(config, membership, place, &files),
            NetworkMode::None => {
                Self::not_served(config, place, &files, Connection::Alone, &etc::files_alone(config))
            }
            NetworkMode::Host => {
                let etc = files::of_host(config);
                Self::not_served(config, place, &files, Connection::Hosts, &etc)
            }
            NetworkMode::Container(whose) => {
                let pid = process_of(whose)?;
                let (namespaces, _) = Namespaces::of_process(pid, None)?;
                let etc = files::of_process(config, pid);
                Self::not_served(config, place, &files, Connection::Shared(&namespaces), &etc)
            }
        }
    }

    fn served(config: &Config, place: Option<Place>, files: &FileLimit, seed: u64) -> Result<Self> {
        let Config { network, link: spec, .. } = config;
        let prepared = Prepared::new(network)?;
        let etc = etc::files(config, prepared.resolv_conf());
        let mut running = launch(config, Connection::Linked { link: spec, network }, &etc, files)?;
        let link = taken_link(&mut running)?;
        let factory = running.take_factory();
        let mut serving = prepared.serve(network, spec, link, factory, seed, Alarm::Failure)?;
        place.map_or(Ok(()), |place| serving.answer_at(place, Some(running.commands())))?;
        Ok(Self { running, network: Carried::Served(Box::new(serving)) })
    }

    fn joined(
        config: &Config,
        membership: &Membership,
        place: Option<Place>,
        files: &FileLimit,
    ) -> Result<Self> {
        let member = Member::join(config, membership)?;
        let config = member.configured(config)?;
        let prepared = Prepared::new(&config.network)?;
        let etc = etc::files(&config, prepared.resolv_conf());
        let connection = Connection::Linked { link: &config.link, network: &config.network };
        let mut running = launch(&config, connection, &etc, files)?;
        let published = member.plug_in(&taken_link(&mut running)?)?;
        member.watch()?;
        let ports = Ports::new(Vec::new(), Vec::new());
        let beyond = Some(member.beyond()?);
        let desk = Desk { ports: ports.clone(), container: Some(running.commands()), beyond };
        place.iter().try_for_each(|place| control::serve(place, desk.clone()))?;
        let network = Carried::Beyond { _member: Box::new(member), published, ports, _place: place };
        Ok(Self { running, network })
    }

    fn not_served(
        config: &Config,
        place: Option<Place>,
        files: &FileLimit,
        connection: Connection<'_>,
        etc: &EtcFiles,
    ) -> Result<Self> {
        let running = launch(config, connection, etc, files)?;
        let ports = Ports::new(Vec::new(), Vec::new());
        let desk = Desk { ports: ports.clone(), container: Some(running.commands()), beyond: None };
        place.iter().try_for_each(|place| control::serve(place, desk.clone()))?;
        Ok(Self { running, network: Carried::Not { ports, _place: place } })
    }

    /// Writes down what is known by now.
    fn describe(&self, kept: &mut Kept) -> Result<()> {
        kept.made(self.running.pid())?;
        kept.change(|record| {
            for (publish, address) in self.published() {
                record.network_settings.listens(&publish, address);
            }
        })
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
        self.running.start()?;
        memory::unmap_used_code();
        Ok(())
    }

    /// Forwards signals until the command ends and what it sent is delivered; its exit status.
    pub fn wait(mut self) -> Result<u8> {
        let status = self.running.wait();
        match self.network {
            Carried::Served(serving) => {
                self.running.wait_unless_told_to_end(serving.drain())?;
                serving.stop().and(status)
            }
            Carried::Beyond { .. } | Carried::Not { .. } => status,
        }
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

/// Launches with the limit on open files that the command shall have.
fn launch(config: &Config, network: Connection<'_>, etc: &EtcFiles, files: &FileLimit) -> Result<Running> {
    files.restore()?;
    let running = container::launch(&Launch { container: &config.container, network, etc, stderr: None })?;
    files.raise()?;
    Ok(running)
}
