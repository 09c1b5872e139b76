//! What of this process stays in memory: large blocks of the C library's allocator, and code.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;

/// Blocks from this size on are mappings of their own (glibc's initial value).
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: c_int = 128 * 1024;
/// No page is larger where Linux runs; what is aligned to it is aligned to smaller ones.
const PAGE_BYTES: libc::Elf64_Addr = 64 * 1024;

/// Keeps large zeroed blocks free of cost until they are used, for as long as the process lives.
///
/// glibc takes a block beyond a threshold straight from the kernel, as pages that appear when first touched and
/// vanish when the block is freed: a TCP flow has two rings of 512 KiB and often needs one page of each. But each
/// time such a block is freed glibc raises the threshold above its size, up to 32 MiB (mallopt(3),
/// M_MMAP_THRESHOLD), and rings then come from the heap, where they must be zeroed, and every page of them is
/// resident. Setting the threshold turns that adjustment off. Other C libraries have none.
pub fn fix_mmap_threshold() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator's parameters may change at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    };
}

/// Unmaps the pages of code and constants that have been used so far; those that are used again come back from the
/// page cache, at a minor fault for every 64 KiB.
///
/// Most of a process that serves an idle network is code that only its start needed (command line, mounts, netlink).
/// Advice that the kernel does not take changes nothing.
pub fn unmap_used_code() {
    // SAFETY: the callback reads what it is given, during the call only.
    unsafe { libc::dl_iterate_phdr(Some(unmap_object), ptr::null_mut()) };
}

/// Unmaps what of one loaded object is never written. Position-independent code has no relocations there
/// (elf(5), DT_TEXTREL), so that what comes back is what was there.
unsafe extern "C" fn unmap_object(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid pointer.
    let object = unsafe { &*object };
    // SAFETY: it says that there are `dlpi_phnum` headers at `dlpi_phdr`.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages only: the ends may share theirs with data.
        let page = PAGE_BYTES;
        // What the kernel links to a place (its vdso) may be moved down, by an address that is large.
        let start = object.dlpi_addr.wrapping_add(header.p_vaddr);
        let end = start.wrapping_add(header.p_memsz) / page * page;
        if let Some(begin) = start.checked_next_multiple_of(page)
            && begin < end
        {
            // SAFETY: a mapping of a file that nothing has written to: dropped pages are read again.
            unsafe { libc::madvise(begin as *mut c_void, (end - begin) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}
