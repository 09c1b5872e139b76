//! A network in service, whoever its guest is: published ports bound first, then the workers' threads with the guest's
//! link.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{LinkKind, LinkSpec, LogLevel, Network, Publish};
use crate::container::{self, Commands};
use crate::control::{self, Desk, Place, Socket};
use crate::error::{Context, Error, Result};
use crate::etc::ResolvConf;
use crate::io::capture::Capture;
use crate::io::command::PortNumber;
use crate::io::follow::Follower;
use crate::io::host::{self, Listener};
use crate::io::link::Link;
use crate::io::ports::{Port, Ports};
use crate::io::resolver::{RESOLV_CONF, Resolver};
use crate::io::splice::{Entrances, Loopback, Relay};
use crate::io::stop::Stop;
use crate::io::worker::Worker;
use crate::log;
use crate::net::Instant;
use crate::sys::factory::Factory;
use crate::sys::link::LinkFd;

/// What can be had before there is a guest: a conflict shows before anything is made.
#[derive(Debug)]
pub struct Prepared {
    resolver: Resolver,
    listeners: Vec<(Publish, Vec<Listener>)>,
}

impl Prepared {
    /// Reads the host's `resolv.conf` and binds the published ports of `network`.
    pub fn new(network: &Network) -> Result<Self> {
        let mut resolver = Resolver::new(RESOLV_CONF);
        resolver.refresh(Instant::ZERO);
        let bind = |publish: &Publish| Ok((*publish, host::listen(publish, network.freebind)?));
        let listeners = network.publish.iter().map(bind).collect::<Result<_>>()?;
        Ok(Self { resolver, listeners })
    }

    /// The host's resolver configuration.
    pub fn resolv_conf(&self) -> &ResolvConf {
        self.resolver.conf()
    }

    /// Serves `network` over `link`, which was made by `spec`, with a worker for each of its queues; past it with
    /// sockets from `factory`, if there is one. `seed` feeds the gateways' random choices. No process can be forked any
    /// more.
    pub fn serve(
        self,
        network: &Network,
        spec: &LinkSpec,
        link: LinkFd,
        factory: Option<Factory>,
        seed: u64,
        alarm: Alarm,
    ) -> Result<Serving> {
        describe(spec, &link);
        let (kind, mac) = (link.kind, link.mac);
        let mut links = Link::queues(link);
        if let Some(path) = &spec.capture {
            record(&mut links, path).context("cannot record frames in", path.display())?;
        }
        let mut team = Worker::team(network.clone(), links, mac, &self.resolver, seed)?;
        let entered = factory.map(|factory| enter(network, &factory, &mut team)).transpose()?.flatten();
        let mut first = Vec::new();
        for (number, (publish, listeners)) in (1..).map(PortNumber).zip(self.listeners) {
            first.push(Ports::describe(number, &publish, &listeners));
            let owner = team[0].owner_of(publish.guest_port);
            team[owner].publish(number, &publish, listeners)?;
        }
        let ports = Ports::new(team.iter().map(Worker::commands).collect(), first, network.freebind);
        let (ended, alive) = io::pipe().context("cannot create", "a pipe")?;
        let mut threads = start_team(team, alarm, &alive)?;
        if let Some(entered) = entered {
            threads.extend(start_entered(entered, network, &ports, &alive)?);
        }
        Ok(Serving { threads, ended, ports, control: None, further: None, link: kind })
    }
}

/// Logs what kind of link it became.
fn describe(spec: &LinkSpec, link: &LinkFd) {
    for note in &link.notes {
        tracing::info!("{note}");
    }
    tracing::info!(kind = %link.kind, "link");
    if spec.queues_given && link.queues.len() < spec.queues.into() {
        tracing::warn!(
            kind = %link.kind,
            queues = link.queues.len(),
            asked = spec.queues,
            "there are not as many workers as asked for: each has a queue of the link"
        );
    }
}

/// Ports of the guest's loopback, and those who serve them.
type Entered = (Entrances, Loopback, Relay);

/// Gives the workers lines to `factory`, and opens those ports of the guest's loopback that are wanted from the start.
fn enter(network: &Network, factory: &Factory, team: &mut [Worker]) -> Result<Option<Entered>> {
    let line = || factory.another().context("cannot reach", "the socket factory");
    for worker in team {
        worker.add_factory(line()?)?;
    }
    if !network.wants_entrances() {
        return Ok(None);
    }
    let (mut entrances, loopback, relay) = Entrances::new(line()?)?;
    network.loopback_forwards.iter().try_for_each(|forward| entrances.open(forward))?;
    Ok(Some((entrances, loopback, relay)))
}

/// A thread that serves a part of the network, and what ends it.
type Serves = (Stop, JoinHandle<Result<()>>);

fn start_team(team: Vec<Worker>, alarm: Alarm, alive: &PipeWriter) -> Result<Vec<Serves>> {
    let start = |(index, worker): (usize, Worker)| {
        start(&format!("worker-{index}"), worker.stopper(), alive, confined(move || run(worker, alarm)))
    };
    team.into_iter().enumerate().map(start).collect()
}

/// The same for what goes past the link, and for ports that follow who listens.
fn start_entered(
    (entrances, loopback, relay): Entered,
    network: &Network,
    ports: &Ports,
    alive: &PipeWriter,
) -> Result<Vec<Serves>> {
    let mut threads = vec![
        start("loopback", loopback.stopper(), alive, confined(succeeds(|| loopback.run())))?,
        start("relay", relay.stopper(), alive, confined(succeeds(|| relay.run())))?,
    ];
    if network.automatic.any() {
        let follower = Follower::new(network.automatic, ports.clone(), entrances)?;
        threads.push(start("follower", follower.stopper(), alive, succeeds(|| follower.run()))?);
    }
    Ok(threads)
}

/// `serve`, whose end is no failure of the network.
fn succeeds(serve: impl FnOnce() + Send + 'static) -> impl FnOnce() -> Result<()> + Send + 'static {
    move || {
        serve();
        Ok(())
    }
}

/// `serve`, by a thread that has little else.
pub(crate) fn confined(
    serve: impl FnOnce() -> Result<()> + Send + 'static,
) -> impl FnOnce() -> Result<()> + Send + 'static {
    || {
        told(container::confine_thread(log::file()));
        serve()
    }
}

/// Confines this process, which has one thread still and all that it needs of the host but sockets. It will not become
/// another program.
pub(crate) fn confine_process() {
    told(container::confine_for_good());
}

/// Not every kernel can do it all, and the network works without.
fn told(confined: Result<()>) {
    if let Err(error) = confined {
        tracing::info!("{error}; rnet keeps what it does not need");
    }
}

/// Starts a thread that does `serve` until `stop`, and closes its end of `alive` then.
fn start(
    name: &str,
    stop: Stop,
    alive: &PipeWriter,
    serve: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<Serves> {
    let alive = alive.try_clone().context("cannot copy", "a pipe")?;
    let serve = move || {
        let served = serve();
        drop(alive);
        served
    };
    let thread = thread::Builder::new()
        .name(format!("rnet-{name}"))
        .spawn(serve)
        .context("cannot start", format!("the thread {name}"))?;
    Ok((stop, thread))
}

/// All queues of a link have one record.
fn record(links: &mut [Link], path: &Path) -> io::Result<()> {
    let capture = Capture::create(path)?;
    links.iter_mut().try_for_each(|link| capture.another().map(|capture| link.record(capture)))
}

/// A network that is being served.
#[derive(Debug)]
pub struct Serving {
    threads: Vec<Serves>,
    /// Closed when all threads have ended.
    ended: PipeReader,
    ports: Ports,
    control: Option<Place>,
    further: Option<Socket>,
    link: LinkKind,
}

impl Serving {
    /// The published ports; more can be added, from any thread.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Prints the ports that the kernel chose, unless the user wants silence.
    pub fn announce(&self, level: LogLevel) {
        if level == LogLevel::Error {
            return;
        }
        for Port { publish, addresses, .. } in self.ports.list() {
            for address in addresses.iter().filter(|_| publish.host_port.is_none()) {
                // A standard error that is closed or full is no reason to end.
                let _ = writeln!(io::stderr(), "{}/{} -> {address}", publish.guest_port, publish.transport);
            }
        }
    }

    /// Answers requests at `place`, which lasts as long as the network; also those about the `container` whose network
    /// it is.
    pub fn answer_at(&mut self, place: Place, container: Option<Commands>) -> Result<()> {
        control::serve(&place, Desk { ports: self.ports.clone(), container, beyond: None })?;
        self.control = Some(place);
        Ok(())
    }

    /// The same at a path that somebody has chosen.
    pub fn answer_at_path(&mut self, socket: Socket) -> Result<()> {
        control::serve_at(&socket, Desk { ports: self.ports.clone(), container: None, beyond: None })?;
        self.further = Some(socket);
        Ok(())
    }

    /// The kind of link that was made.
    pub fn link(&self) -> LinkKind {
        self.link
    }

    /// Has it end once what its guest, whose programs have ended, has sent is delivered, but in ten seconds. What is
    /// returned becomes readable then.
    pub fn drain(&self) -> &impl AsFd {
        for (stop, _) in &self.threads {
            stop.drain();
        }
        &self.ended
    }

    /// Ends it; an error if it had failed before.
    pub fn stop(self) -> Result<()> {
        for (stop, _) in &self.threads {
            stop.stop();
        }
        drop((self.control, self.further));
        let served = self.threads.into_iter().map(|(_, thread)| {
            let panicked = |_| Err(Error::new("cannot serve", "the guest's network", "a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        });
        // All have ended when the first failure is told.
        let served: Vec<Result<()>> = served.collect();
        served.into_iter().collect()
    }
}

/// When the end of a worker ends rnet, as SIGTERM would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// When it fails: without it the guest has no network.
    Failure,
    /// When its guest's link is gone, too.
    AnyEnd,
}

/// A worker's thread.
fn run(worker: Worker, alarm: Alarm) -> Result<()> {
    let bell = Bell;
    worker.run()?;
    if alarm == Alarm::Failure {
        std::mem::forget(bell);
    }
    Ok(())
}

/// Ends rnet when dropped, by a panic too.
struct Bell;

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
}

/// The limit on open files: as high as it goes for rnet, whose flows each have one, and as it was for the command.
#[derive(Debug)]
pub(crate) struct FileLimit {
    soft: rlim_t,
    hard: rlim_t,
}

impl FileLimit {
    pub(crate) fn read() -> Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read", "RLIMIT_NOFILE")?;
        Ok(Self { soft, hard })
    }

    pub(crate) fn raise(&self) -> Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.hard, self.hard).context("cannot raise", "RLIMIT_NOFILE")
    }

    pub(crate) fn restore(&self) -> Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard).context("cannot restore", "RLIMIT_NOFILE")
    }
}
