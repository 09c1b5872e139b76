//! The file of rnet's own program, which a container can get hold of: a command that leads to `/proc/self/exe`, as a link or
//! in a script's first line, opens it from inside. Root of the container is the caller outside, and could change a program
//! that belongs to the caller (chmod(2) even while it runs) for all later uses. What runs from memory is no such file.

use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_name;
use nix::unistd::{AccessFlags, Uid, eaccess, fexecve};

use crate::error::{Context, Result};

const SELF: &str = "/proc/self/exe";
const NAME: &core::ffi::CStr = c"rnet";
/// MFD_EXEC (Linux 6.3): says that it is to be executed, where `vm.memfd_noexec` would else forbid it.
const EXECUTABLE: MFdFlags = MFdFlags::from_bits_retain(0x10);
/// Of a 64-bit ELF header: where the program headers are, the size of one, and their number.
const HEADER_BYTES: usize = 64;
const PHOFF: usize = 32;
const PHENTSIZE: usize = 54;
const PHNUM: usize = 56;
/// Of a program header: its type, and where what it describes lies in the file.
const P_OFFSET: usize = 8;
const P_FILESZ: usize = 32;
const PT_LOAD: u32 = 1;

/// Goes on as a sealed copy in memory with the same `arguments`, unless this is one or nobody but others could change the
/// program's file. To be called before anything is opened or started.
pub fn leave_file(arguments: &[OsString]) -> Result<()> {
    let mut program = File::open(SELF).context("cannot open", SELF)?;
    if is_sealed(&program) {
        // The kernel has named it by the number of its descriptor.
        let _ = set_name(NAME);
        return Ok(());
    }
    if !could_be_changed(&program).context("cannot look at", SELF)? {
        return Ok(());
    }
    let copy = copy(&mut program).context("cannot copy to memory", SELF)?;
    let strings = |words: &mut dyn Iterator<Item = OsString>| -> io::Result<Vec<CString>> {
        words.map(|word| CString::new(word.into_vec()).map_err(io::Error::from)).collect()
    };
    let arguments = strings(&mut arguments.iter().cloned()).context("cannot pass on", "arguments")?;
    let variables = &mut std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = strings(variables).context("cannot pass on", "the environment")?;
    match fexecve(copy, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(errno).context("cannot go on as a copy of", SELF),
    }
}

fn is_sealed(program: &File) -> bool {
    let seals = fcntl(program, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_WRITE))
}

fn could_be_changed(program: &File) -> io::Result<bool> {
    let is_own = program.metadata()?.uid() == Uid::effective().as_raw();
    Ok(is_own || eaccess(SELF, AccessFlags::W_OK).is_ok())
}

/// What of the program is executed, sealed.
fn copy(program: &mut File) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Kernels that do not know the flag allow it without.
    let memory = memfd_create(NAME, flags | EXECUTABLE).or_else(|_| memfd_create(NAME, flags))?;
    let mut memory = File::from(memory);
    let end = loaded_end(program)?;
    program.seek(SeekFrom::Start(0))?;
    io::copy(&mut program.take(end), &mut memory)?;
    memory.set_permissions(Permissions::from_mode(0o555))?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory.into())
}

/// Where in the file the last piece ends that is loaded (elf(5)); what follows is for debuggers. The whole file where its
/// form is another.
fn loaded_end(program: &mut File) -> io::Result<u64> {
    let whole = program.metadata()?.len();
    let mut header = [0; HEADER_BYTES];
    program.read_exact(&mut header)?;
    if header[..5] != *b"\x7fELF\x02" {
        return Ok(whole);
    }
    let size = usize::from(u16_at(&header, PHENTSIZE)).max(P_FILESZ + 8);
    let mut table = vec![0; size * usize::from(u16_at(&header, PHNUM))];
    program.seek(SeekFrom::Start(u64_at(&header, PHOFF)))?;
    program.read_exact(&mut table)?;
    let loaded = table.chunks_exact(size).filter(|entry| entry[..4] == PT_LOAD.to_ne_bytes());
    let ends = loaded.map(|entry| u64_at(entry, P_OFFSET).saturating_add(u64_at(entry, P_FILESZ)));
    Ok(ends.max().filter(|end| *end <= whole).unwrap_or(whole))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::os::fd::AsFd;

    #[test]
    fn the_copy_is_what_is_loaded_and_cannot_be_changed() {
        let mut program = File::open(SELF).expect("a program");
        let whole = program.metadata().expect("a size").len();
        let copy = File::from(copy(&mut program).expect("memory"));
        let copied = copy.metadata().expect("a size");
        assert!(copied.len() <= whole && copied.len() > 4096);
        assert!(is_sealed(&copy) && !is_sealed(&program));
        assert_eq!(nix::unistd::ftruncate(copy.as_fd(), 0), Err(Errno::EPERM));
    }
}
