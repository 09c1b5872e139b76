//! Descriptors that come over unix sockets (unix(7), SCM_RIGHTS).

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use sendfd::SendWithFd;

/// A control message with room for `N` descriptors, laid out as cmsg(3) says.
#[repr(C)]
struct Control<const N: usize> {
    header: libc::cmsghdr,
    fds: [RawFd; N],
}

/// Passes a descriptor to the process at the other end of `socket`, with one byte of zero.
pub(crate) fn send_one(descriptor: &impl AsFd, socket: &UnixStream) -> io::Result<()> {
    socket.send_with_fd(&[0], &[descriptor.as_fd().as_raw_fd()]).map(drop)
}

/// Receives what [`send_one`] passed. `UnexpectedEof` if the other end closed without sending.
pub(crate) fn receive_one(socket: &UnixStream) -> io::Result<OwnedFd> {
    let (_, mut received) = receive::<1>(socket, &mut [0])?;
    received.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Receives bytes, at most as many as there is room for, and up to `N` descriptors that came with them, close-on-exec.
/// They are fewer than were sent if that was more than `N`, or if this process may not have as many: what could not be
/// had is closed. No bytes are the end of the stream.
pub(crate) fn receive<const N: usize>(
    socket: &UnixStream,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    // SAFETY: it consists of integers, for which zeroes are valid.
    let mut control: Control<N> = unsafe { mem::zeroed() };
    control.fds = [-1; N];
    // SAFETY: it consists of integers and pointers, which may be null.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    let mut room = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    message.msg_iov = &raw mut room;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control<N>>() as _;
    // SAFETY: the message describes `bytes` and `control`, both writable and as long as it says, which outlive the
    // call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let len = usize::try_from(Errno::result(len)?).unwrap_or_default();
    let Control { header, fds } = control;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Ok((len, Vec::new()));
    }
    let made = fds.into_iter().take_while(|fd| *fd >= 0);
    // SAFETY: the kernel has just made these descriptors for us, and nothing else knows of them.
    Ok((len, made.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    #[test]
    fn more_descriptors_than_there_is_room_for_are_no_error() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let sent = [theirs.as_raw_fd(); 5];
        theirs.send_with_fd(b"ab", &sent).expect("room");
        theirs.send_with_fd(b"c", &sent[..1]).expect("room");
        let mut bytes = [0; 2];
        let (len, fds) = receive::<3>(&ours, &mut bytes).expect("a message");
        assert_eq!((len, &bytes, fds.len()), (2, b"ab", 3));
        for fd in &fds {
            assert_eq!(fcntl(fd, FcntlArg::F_GETFD).expect("open"), FdFlag::FD_CLOEXEC.bits());
        }
        let (len, fds) = receive::<3>(&ours, &mut bytes).expect("a message");
        assert_eq!((len, bytes[0], fds.len()), (1, b'c', 1));
    }

    #[test]
    fn the_end_of_the_stream_brings_nothing() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        drop(theirs);
        assert!(matches!(receive::<1>(&ours, &mut [0]), Ok((0, fds)) if fds.is_empty()));
    }
}
