//! The client's account: what it has asked, what has been answered, and what follows from that.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Duration;

use crate::common::print;
use crate::message::{LEN, Message, now};

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Questions older than so many others are thought to be lost.
const OPEN: usize = 1000;

/// One answer, in microseconds.
#[derive(Clone, Copy)]
struct Sample {
    round_trip: i64,
    /// By how much the clock here is ahead of the server's, if the way there takes as long as the way
    /// back. It is wrong by half of the round trip at most.
    offset: i128,
}

/// There is one on a loop: its `local` value.
#[derive(Default)]
pub(crate) struct Questions {
    left: Option<u64>,
    asked: u64,
    answered: u64,
    /// When those were sent that have no answer yet.
    open: VecDeque<i64>,
    quickest: Option<Sample>,
}

impl Questions {
    /// So many, or no end of them.
    pub(crate) fn new(count: Option<u64>) -> Questions {
        Questions { left: count, ..Questions::default() }
    }

    /// The next one, which is to be sent now; None after the last.
    pub(crate) fn next(&mut self) -> Option<[u8; LEN]> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        // Each has a time of its own, so that its answer is known by it.
        let sent = self.open.back().map_or(now(), |last| now().max(last + 1));
        if self.open.len() == OPEN {
            self.open.pop_front();
        }
        self.open.push_back(sent);
        self.asked += 1;
        Some(Message { sent, received: 0 }.encode())
    }

    /// Prints what an answer tells that has come at that time. False if it is none to an open question.
    pub(crate) fn take(&mut self, answer: Message, come: i64) -> io::Result<bool> {
        let Some(i) = self.open.iter().position(|&sent| sent == answer.sent) else {
            return Ok(false);
        };
        self.open.remove(i);
        self.answered += 1;
        // Anything may stand in an answer.
        let (sent, received) = (i128::from(answer.sent), i128::from(answer.received));
        let sample = Sample {
            round_trip: come.saturating_sub(answer.sent),
            offset: (sent + i128::from(come)) / 2 - received,
        };
        let Sample { round_trip, offset } = sample;
        if self.quickest.is_none_or(|quickest| round_trip < quickest.round_trip) {
            self.quickest = Some(sample);
        }
        print(format_args!("round trip {round_trip} us, clock offset {offset} us"))?;
        Ok(true)
    }

    /// Whether all have been asked, and answered.
    pub(crate) fn are_over(&self) -> bool {
        self.left == Some(0) && self.answered == self.asked
    }

    /// The last line. An error if there was no answer at all.
    pub(crate) fn sum_up(&self) -> io::Result<()> {
        let Questions { asked, answered, .. } = self;
        let Some(Sample { round_trip, offset }) = self.quickest else {
            let why = format!("{asked} asked, none answered");
            return if *asked == 0 {
                Ok(())
            } else {
                Err(io::Error::new(ErrorKind::TimedOut, why))
            };
        };
        print(format_args!(
            "{asked} asked, {answered} answered; the quickest in {round_trip} us: clock offset \
             {offset} us"
        ))
    }
}
