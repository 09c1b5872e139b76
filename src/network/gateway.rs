//! The gateway of a network with a name: a process in the background that the first container starts, and that ends
//! when the last has left.
//!
//! A worker's thread serves all links; each container has a thread here that waits for it to leave. Containers hold their
//! place by a connection, so whatever ends one, its lease, names and ports end with it.

use std::io::{self, PipeReader, PipeWriter};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use super::definition::{self, Definition};
use super::lease::{Lease, Leases, Wanted};
use super::protocol::{self, Join, Joined, Request};
use crate::config::{HostAccess, MacAddr, Publish};
use crate::container::{self, Foreground};
use crate::control::{self, Desk, Place};
use crate::error::{Context, Error, Result};
use crate::io::command::Commands;
use crate::io::host::{self, Listener};
use crate::io::link::Link;
use crate::io::ports::Ports;
use crate::io::resolver::{RESOLV_CONF, Resolver};
use crate::io::worker::{Guest, Worker};
use crate::net::switch::Seat;
use crate::net::{MAX_NAMES, PortId};
use crate::serve::{self, FileLimit};
use crate::sys::link::{self, LinkFd};
use crate::sys::process;

/// How long a gateway waits for its first client.
const GRACE: Duration = Duration::from_secs(10);
/// How long a client that has to say something may take: a container is set up meanwhile.
const CLIENT_PATIENCE: Duration = Duration::from_secs(120);
/// Pause before the next client when one could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Clients at once, containers among them.
const MAX_CLIENTS: usize = 2048;

/// Starts the gateway of the network `name` in the background; returns when it can be joined. Nothing may have been
/// opened before, and no thread started.
pub(super) fn start(name: &str, seed: u64) -> Result<()> {
    // It outlives whoever started it, and must not keep his files open.
    process::close_all_but(&[]);
    container::detach(|foreground| serve(name, seed, foreground).map(|()| 0))
}

fn serve(name: &str, seed: u64, foreground: Foreground) -> Result<()> {
    FileLimit::read()?.raise()?;
    let definition = definition::load(name)?;
    let place = Place::of_network(name)?;
    let listener = place.listener().context("cannot share", "the gateway's socket")?;
    let mut resolver = Resolver::new(RESOLV_CONF);
    resolver.refresh(crate::net::Instant::ZERO);
    let worker = Worker::of_guests(definition.network(), &resolver, seed)?;
    let (woken, wake) = io::pipe().context("cannot create", "a pipe")?;
    let gateway = Arc::new(Gateway {
        leases: Mutex::new(Leases::new(definition.clone())),
        seated: Mutex::new(Vec::new()),
        clients: AtomicUsize::new(0),
        commands: worker.commands(),
        ports: Ports::new(vec![worker.commands()], Vec::new(), false),
        definition,
        wake,
    });
    serve::confine_process();
    let (ended, alive) = io::pipe().context("cannot create", "a pipe")?;
    thread::Builder::new()
        .name("rnet-worker-0".into())
        .spawn(move || {
            let _alive = alive;
            // Its end is noticed, and ends the process.
            let _ = serve::confined(|| worker.run())();
        })
        .context("cannot start", "the worker's thread")?;
    foreground.release()?;
    gateway.receive(&listener, &woken, &ended)
}

/// What all threads of the process share.
struct Gateway {
    definition: Definition,
    leases: Mutex<Leases>,
    /// Who has a lease, by its number; that pipe's end has the container's thread let go.
    seated: Mutex<Vec<(u64, PipeWriter)>>,
    clients: AtomicUsize,
    commands: Commands,
    ports: Ports,
    /// Written to when a client has gone.
    wake: PipeWriter,
}

impl Gateway {
    /// Lets clients in until the last has gone, or the worker has failed.
    fn receive(
        self: &Arc<Self>,
        listener: &UnixListener,
        woken: &PipeReader,
        ended: &PipeReader,
    ) -> Result<()> {
        listener.set_nonblocking(true).context("cannot use", "the gateway's socket")?;
        let started = Instant::now();
        let mut had_any = false;
        loop {
            let waits = wait_for(&[listener.as_fd(), woken.as_fd(), ended.as_fd()], GRACE)?;
            if waits[2] {
                return Err(Error::new(
                    "cannot serve",
                    format!("the network {}", self.definition.name),
                    "its worker failed",
                ));
            }
            if waits[1] {
                // What is written is only there to wake.
                let _ = io::Read::read(&mut &*woken, &mut [0; 64]);
            }
            had_any |= self.admit_all(listener);
            let is_idle = self.clients.load(Ordering::SeqCst) == 0;
            if is_idle && (had_any || started.elapsed() >= GRACE) {
                return Ok(());
            }
        }
    }

    /// Lets in whoever waits; whether there was anybody.
    fn admit_all(self: &Arc<Self>, listener: &UnixListener) -> bool {
        let mut had_any = false;
        loop {
            match listener.accept() {
                Ok((client, _)) => had_any |= self.admit(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return had_any,
                // Descriptors are used up; those who wait stay readable.
                Err(_) => {
                    thread::sleep(ACCEPT_RETRY);
                    return had_any;
                }
            }
        }
    }

    /// Gives a client a thread; `false` if it is nobody's.
    fn admit(self: &Arc<Self>, client: UnixStream) -> bool {
        if !control::is_own(&client) || self.clients.load(Ordering::SeqCst) >= MAX_CLIENTS {
            return false;
        }
        self.clients.fetch_add(1, Ordering::SeqCst);
        let seat = Client(Arc::clone(self));
        let attend = move || {
            if let Err(error) = seat.0.attend(&client) {
                tracing::debug!(%error, "a client is gone");
            }
            drop(client);
            drop(seat);
        };
        thread::Builder::new().name("rnet-client".into()).spawn(attend).is_ok()
    }

    fn attend(&self, client: &UnixStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(CLIENT_PATIENCE))?;
        client.set_write_timeout(Some(CLIENT_PATIENCE))?;
        let Some(line) = protocol::receive(client)? else { return Ok(()) };
        match serde_json::from_slice(&line)? {
            Request::Members {} => {
                let members: Vec<Lease> = self.leases().iter().cloned().collect();
                protocol::reply(client, &Ok(members))
            }
            Request::Leave { container } => protocol::reply(client, &self.dismiss(&container)),
            Request::Join(join) => match self.reserve(&join) {
                Ok(reserved) => {
                    protocol::reply(client, &Ok(&reserved.lease))?;
                    self.host(client, &join, reserved)
                }
                Err(error) => protocol::reply::<()>(client, &Err(error)),
            },
        }
    }

    /// Takes a container out.
    fn dismiss(&self, container: &str) -> Result<()> {
        let numbers = self.leases().of(container);
        if numbers.is_empty() {
            let network = format!("the network {}", self.definition.name);
            return Err(Error::new("cannot leave", network, format!("{container} is not in it")));
        }
        lock(&self.seated).retain(|(number, _)| !numbers.contains(number));
        Ok(())
    }

    /// Sets aside what a container needs: its addresses, and its ports' listeners.
    fn reserve(&self, join: &Join) -> Result<Reserved<'_>> {
        let mac = join.mac.as_deref().map(str::parse::<MacAddr>).transpose();
        let mac = mac.map_err(|cause| {
            Error::new("cannot join", format!("the network {}", self.definition.name), cause)
        })?;
        let wanted = Wanted { ipv4: join.ipv4, ipv6: join.ipv6, mac };
        let names = [&join.names[..], &join.aliases].concat();
        let mut all = vec![join.container.clone()];
        for name in names {
            if !all.contains(&name) && all.len() < MAX_NAMES {
                all.push(name);
            }
        }
        let (number, lease) = self.leases().add(&join.container, all, wanted)?;
        let mut reserved = Reserved { gateway: self, number, lease, listeners: Vec::new(), port: None };
        for publish in control::protocol::listed(&json!({ "ports": join.ports }))? {
            reserved.listeners.push((publish, host::listen(&publish, false)?));
        }
        Ok(reserved)
    }

    /// Serves a container until it leaves.
    fn host(&self, client: &UnixStream, join: &Join, mut reserved: Reserved<'_>) -> io::Result<()> {
        // From here on it can be taken out.
        let (dismissed, seat) = io::pipe()?;
        lock(&self.seated).push((reserved.number, seat));
        let link = link::receive(client)?;
        let watch = join.pid.map(container::watch_process).transpose();
        let seated = watch.and_then(|watch| Ok((watch, reserved.take_seat(link, join)?)));
        let (watch, ports) = match seated {
            Ok((watch, (joined, ports))) => {
                protocol::reply(client, &Ok(joined))?;
                (watch, ports)
            }
            Err(error) => return protocol::reply::<()>(client, &Err(error)),
        };
        match watch {
            Some(ended) => {
                // Who has joined on the container's behalf has no more to say, nor to hear.
                client.shutdown(Shutdown::Both)?;
                wait_for_either(ended.as_fd(), dismissed.as_fd()).map(drop)
            }
            None => converse(client, &ports, &dismissed),
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }
}

/// Answers a container's requests about its ports until it has gone, or has to go.
fn converse(client: &UnixStream, ports: &Ports, dismissed: &PipeReader) -> io::Result<()> {
    let desk = Desk { ports: ports.clone(), container: None, beyond: None };
    loop {
        let [spoke, dismissed] = wait_for_either(client.as_fd(), dismissed.as_fd())?;
        if dismissed || !spoke {
            return Ok(());
        }
        let Some(line) = protocol::receive(client)? else { return Ok(()) };
        protocol::send(client, &control::answer(&line, &desk))?;
    }
}

/// A client's thread; the gateway hears of its end.
struct Client(Arc<Gateway>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
        // A full pipe wakes, too.
        let _ = io::Write::write(&mut &self.0.wake, &[0]);
    }
}

/// What a container has of the network; dropping it gives all back.
struct Reserved<'g> {
    gateway: &'g Gateway,
    number: u64,
    lease: Lease,
    listeners: Vec<(Publish, Vec<Listener>)>,
    port: Option<PortId>,
}

impl Reserved<'_> {
    /// Plugs the container's link in and opens its ports.
    fn take_seat(&mut self, link: LinkFd, join: &Join) -> Result<(Joined, Ports)> {
        let mut links = Link::queues(link);
        let only = links.pop().filter(|_| links.is_empty());
        let link =
            only.ok_or_else(|| Error::new("cannot use", "the container's link", "it has several queues"))?;
        let (port, kept) =
            self.gateway.commands.attach(Guest { link, seat: self.seat(join)?, names: self.names(join) })?;
        self.port = Some(port);
        let ports = self.gateway.ports.of_guest(port);
        for (publish, listeners) in self.listeners.drain(..) {
            ports.take(&publish, listeners)?;
        }
        let listed = control::protocol::listing(&ports.list());
        Ok((Joined { ports: listed, kept }, ports))
    }

    fn seat(&self, join: &Join) -> Result<Seat> {
        let Lease { ipv4, ipv6, mac, .. } = &self.lease;
        let mut network = self.gateway.definition.with_guest(*ipv4, *ipv6);
        network.host_access =
            HostAccess { loopback: join.host_loopback, allowed: join.allowed.clone(), link_local: false };
        let mac = mac.parse().map_err(|cause: String| Error::new("cannot use", mac, cause))?;
        Ok(Seat { mac, network: network.into() })
    }

    /// Its names, and whether nobody else may have them.
    fn names(&self, join: &Join) -> Vec<(String, bool)> {
        let is_own = |name: &String| *name == join.container || join.names.contains(name);
        self.lease.names.iter().map(|name| (name.clone(), is_own(name))).collect()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(port) = self.port {
            // A worker that has ended serves nobody any more.
            let _ = self.gateway.commands.detach(port);
        }
        lock(&self.gateway.seated).retain(|(number, _)| *number != self.number);
        self.gateway.leases().remove(self.number);
    }
}

/// Whoever panicked has left it whole: nothing is changed in two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until one of two is readable or closed, and tells which.
fn wait_for_either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<[bool; 2]> {
    let ready = poll_all(&[one, other], PollTimeout::NONE)?;
    Ok([ready[0], ready[1]])
}

/// Waits until one is readable or closed, or some time; which ones are.
fn wait_for(fds: &[BorrowedFd<'_>], at_most: Duration) -> Result<Vec<bool>> {
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
    poll_all(fds, timeout).context("cannot wait for", "clients")
}

fn poll_all(fds: &[BorrowedFd<'_>], timeout: PollTimeout) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    // A signal may make the wait longer.
    while let Err(errno) = poll(&mut fds, timeout) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    Ok(fds.iter().map(|fd| fd.any().unwrap_or(false)).collect())
}
