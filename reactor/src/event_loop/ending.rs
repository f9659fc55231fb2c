//! The end of a loop: what was accepted still runs, and then everything is dropped.

use super::{Dead, EventLoop, Phase};
use crate::sys::task::SendTask;

impl EventLoop {
    /// Lets go of everything: of a loop that has run, and of one that never did.
    pub(super) fn end(&self) {
        if self.phase.get() == Phase::Ended || self.handle.shared().is_forked() {
            return;
        }
        // Also of a loop that never ran, so that the last tasks cannot run it.
        self.phase.set(Phase::Running);
        if let Some(stopwatch) = &self.stopwatch {
            stopwatch.begin();
        }
        // From here on posts are refused; what was accepted runs.
        let last = self.handle.shared().close();
        self.tasks.borrow_mut().extend(last.into_iter().map(SendTask::into_task));
        self.run_last_tasks();
        if self.handle.shared().is_forked() {
            // One of the tasks has forked, and this is the child. What is left is the parent's.
            return;
        }

        self.phase.set(Phase::Ending);
        for token in self.channels.tokens() {
            if let Some((source, _)) = self.channels.get(token) {
                let end = || source.on_loop_end(self, token);
                if self.isolate("the handler of a loop's end", end).is_err() {
                    self.tell_of_panic(token);
                }
            }
            self.deregister(token);
            self.drop_dead();
        }
        self.bury_the_rest();
        self.drop_dead();
        self.phase.set(Phase::Ended);
    }

    /// Runs the tasks that were accepted before the end, but no more of them at a time than in a
    /// turn: so what they send leaves in between, and output limits are watched.
    fn run_last_tasks(&self) {
        let mut left = self.tasks.borrow().len();
        loop {
            left -= self.run_some(left);
            if self.handle.shared().is_forked() {
                return;
            }
            self.call_turn_ends();
            self.drop_dead();
            if left == 0 {
                break;
            }
        }
    }

    fn bury_the_rest(&self) {
        let tasks = self.tasks.take();
        if !tasks.is_empty() {
            log::debug!("{} tasks deferred by the last ones of a loop are dropped", tasks.len());
        }
        let mut graveyard = self.graveyard.borrow_mut();
        graveyard.extend(tasks.into_iter().map(Dead::Task));
        graveyard.extend(self.timers.clear().map(Dead::Timer));
        graveyard.extend(self.signals.clear().map(Dead::Signal));
        graveyard.extend(self.locals.take().into_iter().map(|(_, value)| Dead::Local(value)));
    }
}
