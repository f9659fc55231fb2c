//! poll(2): which of a list of descriptors are ready. The whole list is handed over in each call.

use std::io;
use std::time::Duration;

use super::check;

/// Waits until one of `list` is ready or `timeout` (`None`: for ever) is over. Sets `revents` of
/// all and returns for how many it is not zero.
///
/// `poll` counts milliseconds, so a finite timeout goes through `ppoll` where there is one, which
/// counts nanoseconds; elsewhere the milliseconds are rounded up, for a wait that ends early would
/// make the caller spin until its deadline.
pub(crate) fn wait(list: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    match timeout {
        None => wait_ms(list, -1),
        Some(Duration::ZERO) => wait_ms(list, 0),
        Some(timeout) => wait_timed(list, timeout),
    }
}

fn wait_ms(list: &mut [libc::pollfd], ms: libc::c_int) -> io::Result<usize> {
    // SAFETY: the pointer is valid for as many entries as are told; any numbers may stand in them.
    let n = check(unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, ms) })?;
    Ok(n as usize)
}

#[cfg(not(target_vendor = "apple"))]
fn wait_timed(list: &mut [libc::pollfd], timeout: Duration) -> io::Result<usize> {
    // A wait cut short by this clamp (68 years) costs its caller one turn.
    let timespec = libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    };
    let (entries, length) = (list.as_mut_ptr(), list.len() as libc::nfds_t);
    // SAFETY: as above; the timespec outlives the call; a null signal mask means "leave it".
    let n = check(unsafe {
        libc::ppoll(entries, length, &raw const timespec, std::ptr::null::<libc::sigset_t>())
    })?;
    Ok(n as usize)
}

#[cfg(target_vendor = "apple")]
fn wait_timed(list: &mut [libc::pollfd], timeout: Duration) -> io::Result<usize> {
    wait_ms(list, super::ceil_ms(timeout))
}
