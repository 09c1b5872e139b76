//! `rnet hello`: shows that rnet works on this machine, through the very code of `rnet run`.
//!
//! A container whose root is a tmpfs with rnet's own executable serves a page, which is fetched from outside
//! through a published port; from inside it fetches one from outside through the stack. Both are then repeated
//! with as many bytes as pass in a moment. The page is plain HTTP/1.0, the end of the connection the end of the
//! answer.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::config::{Config, LinkKind, Publish, RootFs, Transport, Volume};
use crate::error::{Context, Error, Result};
use crate::run::Session;

/// Where the guest serves.
const GUEST_PORT: u16 = 8080;
/// How long bytes are sent to measure a direction.
const MEASURE: Duration = Duration::from_millis(700);
/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait before the guest is asked again whether it serves.
const RETRY: Duration = Duration::from_millis(2);
/// Bytes of one read or write.
const CHUNK: usize = 256 * 1024;
/// Longest request or page that is read, in bytes.
const MAX_TEXT: u64 = 16 * 1024;
/// What the page outside says.
const OUTSIDE_PAGE: &str = "a page outside";

/// Runs the show for `config`, which the command line made; its exit status.
pub fn hello(mut config: Config, seed: u64) -> Result<u8> {
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on", "127.0.0.1")?;
    let page = outside.local_addr().context("cannot read", "the address of the outside page")?;
    furnish(&mut config, page)?;
    let began = Instant::now();
    let mut session = Session::prepare(&config, seed)?;
    let ready = began.elapsed();
    describe(&config, &session, ready)?;
    thread::spawn(move || serve_outside(&outside));
    let published = published_address(&session)?;
    session.start()?;
    let gateway = SocketAddr::from((config.network.gateway(), page.port()));
    let visitor = thread::spawn(move || {
        let visited = visit(published, gateway);
        if visited.is_err() {
            // Nobody sends the guest home any more: this ends it, as it would end any other command.
            let _ = kill(Pid::this(), Signal::SIGTERM);
        }
        visited
    });
    let status = session.wait()?;
    match visitor.join() {
        Ok(visited) => visited.map(|()| status),
        Err(_) => Err(Error::new("cannot fetch from", published, "the visitor panicked")),
    }
}

/// What the container needs: rnet's executable with the libraries that it has loaded, and the command.
fn furnish(config: &mut Config, page: SocketAddr) -> Result<()> {
    let executable = std::env::current_exe().context("cannot find", "rnet's own executable")?;
    let libraries = loaded_libraries(&executable)?;
    let inside = |library: &Path| Path::new("/lib").join(library.file_name().unwrap_or_default());
    let loader = libraries.iter().find(|library| is_loader(library)).map(|library| inside(library));
    let container = &mut config.container;
    container.rootfs = RootFs::Empty;
    container.volumes = libraries.iter().map(|library| read_only(library, inside(library))).collect();
    container.volumes.push(read_only(&executable, PathBuf::from("/rnet")));
    let gateway = SocketAddr::from((config.network.gateway(), page.port()));
    container.command = match loader {
        Some(loader) => vec![loader.into(), "--library-path".into(), "/lib".into(), "/rnet".into()],
        None => vec!["/rnet".into()],
    };
    container.command.extend(["hello-guest".into(), gateway.to_string().into()]);
    config.network.host_access.allowed.push(page);
    config.network.publish.push(Publish {
        host_addr: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host_port: None,
        host_interface: None,
        guest_addr: None,
        guest_port: GUEST_PORT,
        transport: Transport::Tcp,
    });
    Ok(())
}

fn read_only(source: &Path, target: PathBuf) -> Volume {
    Volume { source: source.to_path_buf(), target, read_only: true }
}

/// Files that are mapped with execute permission into this process, but its own executable (proc_pid_maps(5)).
fn loaded_libraries(executable: &Path) -> Result<Vec<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read", "/proc/self/maps")?;
    let mut libraries: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            let permissions = columns.nth(1)?;
            let path = columns.nth(3)?;
            (permissions.contains('x') && path.starts_with('/')).then(|| PathBuf::from(path))
        })
        .filter(|path| path != executable)
        .collect();
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

/// Whether a library is the dynamic loader, by the names that loaders have (ld-linux-x86-64.so.2, ld-musl-...).
fn is_loader(library: &Path) -> bool {
    library.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld"))
}

fn published_address(session: &Session) -> Result<SocketAddr> {
    let published = session.published().into_iter().next();
    published
        .map(|(_, address)| address)
        .ok_or_else(|| Error::new("cannot publish", GUEST_PORT, "no address"))
}

/// Says what was made.
fn describe(config: &Config, session: &Session, ready: Duration) -> Result<()> {
    let network = &config.network;
    say(&format!("a container, made in {:.1} ms as {}:", ready.as_secs_f64() * 1e3, caller()))?;
    say("  namespaces  user, network, mount, pid, uts, ipc, cgroup")?;
    say("  root        a tmpfs with this executable in it")?;
    if let Some(kind) = session.link() {
        let (ifname, mtu) = (&config.link.ifname, network.mtu);
        say(&format!("  link        {kind} ({}): {ifname}, MTU {mtu}", meaning(kind)))?;
    }
    let (guest, gateway) = (network.guest(), network.gateway());
    let ipv6 = network.ipv6.filter(|_| guest.is_ipv4()).map(|plan| format!(" and {}", plan.guest));
    let ipv6 = ipv6.unwrap_or_default();
    let dns = network.dns_addresses().next().map(|dns| format!(", DNS {dns}")).unwrap_or_default();
    say(&format!("  addresses   {guest}{ipv6}; gateway {gateway}{dns}"))?;
    for (publish, address) in session.published() {
        say(&format!("  published   {address} -> guest port {}/{}", publish.guest_port, publish.transport))?;
    }
    say("what went through:")
}

fn caller() -> String {
    match Uid::current() {
        root if root.is_root() => "root, which it would not have needed".to_owned(),
        user => format!("an ordinary user (uid {user})"),
    }
}

fn meaning(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Auto => "the best that works",
        LinkKind::Tap => "TAP with offloads",
        LinkKind::TapPlain => "TAP without offloads",
        LinkKind::Packet => "veth with a packet socket",
        LinkKind::Socket => "unix socket",
    }
}

/// Outside: fetches the guest's pages, measures, and sends it home. The guest knows the page outside as `outside`.
fn visit(guest: SocketAddr, outside: SocketAddr) -> Result<()> {
    let page = first_page(guest).context("cannot fetch the guest's page from", guest)?;
    say(&format!("  in          http://{guest}/, served by the guest: \"{}\"", page.trim()))?;
    let fetched = text(guest, "/fetched").context("cannot hear from the guest at", guest)?;
    if fetched != OUTSIDE_PAGE {
        return Err(Error::new("the guest cannot fetch", format!("http://{outside}/"), fetched));
    }
    say(&format!("  out         http://{outside}/, fetched by the guest: \"{fetched}\""))?;
    let inward = measure_in(guest).context("cannot send to the guest at", guest)?;
    say(&format!("  speed in    {}", rate(inward)))?;
    let outward = measure_out(guest).context("cannot receive from the guest at", guest)?;
    say(&format!("  speed out   {}", rate(outward)))?;
    text(guest, "/quit").context("cannot send home the guest at", guest)?;
    let rnet = std::env::args_os().next().unwrap_or_else(|| "rnet".into());
    let rnet = rnet.display();
    say("rnet works here. What to try next, with your own programs, whose writes vanish:")?;
    say(&format!("  {rnet} run / sh"))?;
    say(&format!("  {rnet} run -p 8000:8000 / python3 -m http.server 8000"))
}

/// One line on standard output, which may be full or closed.
fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to", "standard output")
}

fn rate((bytes, elapsed): (u64, Duration)) -> String {
    let gigabits = bytes as f64 * 8.0 / 1e9 / elapsed.as_secs_f64();
    format!(
        "{gigabits:.1} Gbit/s ({} MB in {:.2} s, one connection)",
        bytes / 1_000_000,
        elapsed.as_secs_f64()
    )
}

/// The guest's first page, as soon as it serves.
fn first_page(guest: SocketAddr) -> io::Result<String> {
    let began = Instant::now();
    loop {
        match text(guest, "/") {
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(RETRY),
            page => return page,
        }
    }
}

/// The text of a page.
fn text(server: SocketAddr, path: &str) -> io::Result<String> {
    let stream = request(server, path)?;
    let mut page = String::new();
    body(stream)?.take(MAX_TEXT).read_to_string(&mut page)?;
    Ok(page)
}

/// Pushes bytes to the guest for a moment; how many it counted, and how long it took until it said so.
fn measure_in(guest: SocketAddr) -> io::Result<(u64, Duration)> {
    let began = Instant::now();
    let mut stream = request(guest, "/sink")?;
    pour(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let mut counted = String::new();
    body(stream)?.take(MAX_TEXT).read_to_string(&mut counted)?;
    let bytes = counted.trim().parse().map_err(io::Error::other)?;
    Ok((bytes, began.elapsed()))
}

/// Takes what the guest sends for a moment.
fn measure_out(guest: SocketAddr) -> io::Result<(u64, Duration)> {
    let began = Instant::now();
    let bytes = drain(&mut body(request(guest, "/bulk")?)?)?;
    Ok((bytes, began.elapsed()))
}

fn request(server: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    Ok(stream)
}

/// What follows the header lines.
fn body(stream: TcpStream) -> io::Result<BufReader<TcpStream>> {
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    skip_header(&mut reader)?;
    Ok(reader)
}

fn skip_header(reader: &mut impl BufRead) -> io::Result<()> {
    let mut header = reader.take(MAX_TEXT);
    let mut line = String::new();
    while header.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    Ok(())
}

fn pour(stream: &mut impl Write) -> io::Result<()> {
    let chunk = vec![b'.'; CHUNK];
    let began = Instant::now();
    while began.elapsed() < MEASURE {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn drain(stream: &mut impl Read) -> io::Result<u64> {
    io::copy(stream, &mut io::sink())
}

/// Outside: the page that the guest fetches. Ends with the process.
fn serve_outside(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let served = path_of(&mut reader(&stream)).and_then(|_| page(&stream, OUTSIDE_PAGE));
        if let Err(error) = served {
            tracing::debug!(%error, "the page outside was not fetched");
        }
    }
}

/// Inside: the command of the container. Serves until it is sent home.
pub fn guest(outside: SocketAddr) -> Result<u8> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, GUEST_PORT))
        .context("cannot listen on", format!("guest port {GUEST_PORT}"))?;
    loop {
        let (stream, client) = listener.accept().context("cannot accept on", GUEST_PORT)?;
        let mut reader = reader(&stream);
        let path = path_of(&mut reader).context("cannot read the request of", client)?;
        serve_inside(&mut reader, &path, outside).context("cannot answer", client)?;
        if path == "/quit" {
            return Ok(0);
        }
    }
}

fn serve_inside(client: &mut BufReader<&TcpStream>, path: &str, outside: SocketAddr) -> io::Result<()> {
    let mut stream = *client.get_ref();
    match path {
        "/" => page(stream, &format!("hello from pid {}, uid {}", process::id(), Uid::current())),
        "/fetched" => match text(outside, "/") {
            Ok(fetched) => page(stream, fetched.trim()),
            Err(error) => page(stream, &error.to_string()),
        },
        "/bulk" => page(stream, "").and_then(|()| pour(&mut stream)),
        "/sink" => {
            let bytes = drain(client)?;
            page(stream, &bytes.to_string())
        }
        "/quit" => page(stream, "bye"),
        _ => page(stream, "no such page"),
    }
}

fn reader(stream: &TcpStream) -> BufReader<&TcpStream> {
    BufReader::with_capacity(CHUNK, stream)
}

/// The path that a client asks for; what follows the header stays in the reader.
fn path_of(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(MAX_TEXT).read_line(&mut line)?;
    skip_header(reader)?;
    Ok(line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn page(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{text}").as_bytes())
}
