//! malloc_trim(3): memory that was freed, back to the system.

/// Has the C library's allocator give its free pages back to the system. By itself it gives back
/// only what lies behind the last piece in use: after ten thousand connections have closed, one
/// small piece may keep the memory of them all. The more memory there is, the longer this takes.
/// Where the library has no such call, it does nothing.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
