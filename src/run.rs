//! `rnet run`, put together: published ports, container, link, worker, command, in an order in which nothing
//! is half done when a step fails.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{Config, LinkKind, LogLevel, Publish};
use crate::container::{self, Launch, Running};
use crate::error::{Context, Error, Result};
use crate::etc;
use crate::io::host::{self, Listener};
use crate::io::link::Link;
use crate::io::resolver::Resolver;
use crate::io::worker::{Stop, Worker};
use crate::net::Instant;
use crate::sys::memory;

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A container with its network, ready for its command.
pub struct Session {
    running: Running,
    workers: Vec<(Stop, JoinHandle<Result<()>>)>,
    published: Vec<(Publish, SocketAddr)>,
    link: LinkKind,
}

/// Runs the command of `config`; its exit status by docker's convention.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    let mut session = Session::prepare(config, seed)?;
    session.announce(config.log.level);
    session.start()?;
    session.wait()
}

impl Session {
    /// Does everything but start the command. No thread may have been started before. `seed` feeds the gateway's
    /// random choices.
    pub fn prepare(config: &Config, seed: u64) -> Result<Self> {
        let files = FileLimit::read()?;
        files.raise()?;
        let mut resolver = Resolver::new(RESOLV_CONF);
        resolver.refresh(Instant::ZERO);
        let listeners = bind(&config.network.publish)?;
        let published = listeners.iter().map(|(publish, listener)| (*publish, listener.address())).collect();
        let etc = etc::files(config, resolver.conf());
        let launch =
            Launch { container: &config.container, link: &config.link, network: &config.network, etc: &etc };
        files.restore()?;
        let mut running = container::launch(&launch)?;
        files.raise()?;
        let link = running
            .take_link()
            .ok_or_else(|| Error::new("cannot take over", "the guest's link", "the container kept it"))?;
        for note in &link.notes {
            tracing::info!("{note}");
        }
        tracing::info!(kind = %link.kind, "link");
        let kind = link.kind;
        let queues = Link::queues(link);
        if config.workers_given && queues.len() < config.link.queues.into() {
            tracing::warn!(
                %kind,
                queues = queues.len(),
                asked = config.link.queues,
                "there are not as many workers as asked for: each has a queue of the link"
            );
        }
        let mut team =
            Worker::team(config.network.clone(), queues, config.link.mac, listeners, &resolver, seed)?;
        if let Some(factory) = running.take_factory() {
            for worker in &mut team {
                let line = factory.another().context("cannot reach", "the socket factory")?;
                worker.add_factory(line)?;
            }
        }
        let workers = team.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { running, workers, published, link: kind })
    }

    /// The published ports with the addresses that they got.
    pub fn published(&self) -> &[(Publish, SocketAddr)] {
        &self.published
    }

    /// The kind of link that was made.
    pub fn link(&self) -> LinkKind {
        self.link
    }

    /// Prints the ports that the kernel chose, unless the user wants silence.
    fn announce(&self, level: LogLevel) {
        if level == LogLevel::Error {
            return;
        }
        for (publish, address) in &self.published {
            if publish.host_port.is_none() {
                // A standard error that is closed or full is no reason to end.
                let _ = writeln!(io::stderr(), "{}/{} -> {address}", publish.guest_port, publish.transport);
            }
        }
    }

    /// Starts the command.
    pub fn start(&mut self) -> Result<()> {
        self.running.start()?;
        memory::unmap_used_code();
        Ok(())
    }

    /// Forwards signals until the command ends; its exit status.
    pub fn wait(mut self) -> Result<u8> {
        let status = self.running.wait();
        for (stop, _) in &self.workers {
            stop.stop();
        }
        let served = self.workers.into_iter().map(|(_, worker)| {
            let panicked = |_| Err(Error::new("cannot serve", "the guest's network", "a worker panicked"));
            worker.join().unwrap_or_else(panicked)
        });
        // All have ended when the first failure is told.
        let served: Vec<Result<()>> = served.collect();
        served.into_iter().collect::<Result<()>>().and(status)
    }
}

fn start((index, worker): (usize, Worker)) -> Result<(Stop, JoinHandle<Result<()>>)> {
    let stop = worker.stopper();
    let thread = thread::Builder::new()
        .name(format!("rnet-worker-{index}"))
        .spawn(move || serve(worker))
        .context("cannot start", "a worker thread")?;
    Ok((stop, thread))
}

/// A worker's thread. Without it the guest has no network: however it fails, that ends rnet and the guest, as
/// SIGTERM would.
fn serve(worker: Worker) -> Result<()> {
    let alarm = Alarm;
    worker.run()?;
    std::mem::forget(alarm);
    Ok(())
}

/// Ends rnet when dropped, by a panic too.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
}

fn bind(publish: &[Publish]) -> Result<Vec<(Publish, Listener)>> {
    let mut listeners = Vec::new();
    for publish in publish {
        listeners.extend(host::listen(publish)?.into_iter().map(|listener| (*publish, listener)));
    }
    Ok(listeners)
}

/// The limit on open files: as high as it goes for rnet, whose flows each have one, and as it was for the command.
struct FileLimit {
    soft: rlim_t,
    hard: rlim_t,
}

impl FileLimit {
    fn read() -> Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read", "RLIMIT_NOFILE")?;
        Ok(Self { soft, hard })
    }

    fn raise(&self) -> Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.hard, self.hard).context("cannot raise", "RLIMIT_NOFILE")
    }

    fn restore(&self) -> Result<()> {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard).context("cannot restore", "RLIMIT_NOFILE")
    }
}
