#!/usr/bin/env python3
"""Plant bugs in the core, one at a time, and check that the loom models find each.

A model that passes either way proves nothing. Every entry of BUGS is a plausible mistake, with the
models that must fail because of it. Run from anywhere, standard library only:

    tests/seeded_bugs.py               all of them, about half a minute each
    tests/seeded_bugs.py lock park     those whose name or models contain one of the words
    tests/seeded_bugs.py --list        print all names

It works on a copy, in `seeded` below cargo's target folder. The exit code is 0 only if all were caught. An edit whose
text is not found in the source any more is STALE and counts as missed: bring it up to date.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "seeded"
TREE = WORK / "tree"

# A bug may hang a model instead of failing it. The slowest subject takes a quarter of this.
LONGEST = 600.0


class Bug(NamedTuple):
    """One planted bug."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    models: str


def bug(name: str, file: str, models: str, *edits: tuple[str, str]) -> Bug:
    """Describe a bug: `edits` are pairs of the text in the source, in any line breaks, and its replacement."""
    return Bug(name, f"src/{file}", edits, f"models::{models}::loom_")


BUGS = (
    # --- blocked calls of other code
    bug(
        "an order is withdrawn although the handler may have taken it",
        "foreign/order.rs",
        "foreign",
        (
            "word & MASK == ARMED && self.change(word, WITHDRAWN)",
            "{ self.word.store(word & !MASK | WITHDRAWN, Ordering::Relaxed); true }",
        ),
    ),
    bug(
        "the handler takes any order, whatever its signal's number",
        "foreign/order.rs",
        "foreign",
        ("if word >> BITS != number {", "if number == 0 {"),
    ),
    bug(
        "an answer is no release",
        "foreign/order.rs",
        "foreign",
        (
            "self.word.store(number << BITS | state, Ordering::Release);",
            "self.word.store(number << BITS | state, Ordering::Relaxed);",
        ),
    ),
    bug(
        "a flag is read before it is pinned",
        "foreign/slots.rs",
        "foreign",
        (
            "self.pins.fetch_add(1, Ordering::SeqCst); fence::heavy();",
            "self.pins.fetch_add(1, Ordering::Relaxed);",
        ),
    ),
    bug(
        "a thread publishes and does not wait for pins",
        "foreign/slots.rs",
        "foreign",
        ("if self.pins.load(Ordering::Acquire) != 0 { self.wait_for_pins(); }", ""),
    ),
    bug(
        "the watcher stops looking, and does not look at the flag once more",
        "foreign/slots.rs",
        "foreign",
        (
            "let is_to_stop = self.pin().is_cancelled() || self.has_due_kill();",
            "let is_to_stop = self.has_due_kill();",
        ),
    ),
    bug(
        "the watcher sleeps, and does not look at the deadlines once more",
        "token/alarm.rs",
        "foreign",
        ("let first = deadlines();", "let first = Time::NEVER; let _ = deadlines;"),
    ),
    # --- the tree of tokens
    bug(
        "the cancelled flag is set with relaxed ordering",
        "token/tree.rs",
        "token",
        (
            "compare_exchange_weak(seen, flagged, Ordering::AcqRel, Ordering::Acquire)",
            "compare_exchange_weak(seen, flagged, Ordering::Relaxed, Ordering::Relaxed)",
        ),
    ),
    bug(
        "children and hooks are announced by a store, not a read-modify-write",
        "token/tree.rs",
        "token",
        (
            "self.node().state.fetch_or(what, Ordering::AcqRel)",
            "{ self.node().state.store(seen | what, Ordering::Release); seen }",
        ),
    ),
    bug(
        "the second canceller replaces the cause",
        "token/tree/cause_slot.rs",
        "token",
        (
            "self.0.compare_exchange(ptr::null_mut(), offered, Ordering::AcqRel, Ordering::Acquire)",
            "Ok::<_, *mut Cause>(self.0.swap(offered, Ordering::AcqRel))",
        ),
    ),
    bug(
        "the flag is set without the node that has the cause",
        "token/tree.rs",
        "token",
        ("let flagged = seen | CANCELLED | OWN | more;", "let flagged = seen | CANCELLED | more;"),
    ),
    bug(
        "a child born under a cancelled parent is not cancelled",
        "token/tree.rs",
        "token",
        ("child.node().state.fetch_or(CANCELLED, Ordering::Release);", ""),
    ),
    bug(
        "a child that was counted down to nothing stays in its parent's list",
        "token/tree.rs",
        "token",
        (
            "it cannot. this.unlink_if(|_| true)",
            "it cannot.\ntrue",
        ),
    ),
    bug(
        "a sole owner does not check again under the parent's lock",
        "token/tree.rs",
        "token",
        (
            "this.unlink_if(|this| this.refs.load(Ordering::Acquire) == 1)",
            "this.unlink_if(|_| true)",
        ),
    ),
    bug(
        "the canceller upgrades a node that is being freed",
        "token/tree.rs",
        "token",
        ("while refs != 0 { match node.refs", "while refs != u32::MAX { match node.refs"),
    ),
    bug(
        "a reference count is decremented with relaxed ordering",
        "token/tree.rs",
        "token",
        ("this.refs.fetch_sub(1, Ordering::Release)", "this.refs.fetch_sub(1, Ordering::Relaxed)"),
    ),
    bug(
        "closing unlinks a node that the canceller has detached",
        "token/tree/children.rs",
        "token",
        (
            "state.load(Ordering::Relaxed) & TAKEN != 0",
            "state.load(Ordering::Relaxed) & TAKEN == u32::MAX",
        ),
    ),
    bug(
        "a closed child stays in its parent's list",
        "token/tree.rs",
        "token",
        ("self.node().unlink_if(|_| true);", ""),
    ),
    bug(
        "a passed deadline of a child does not count when the parent is cancelled",
        "token/tree.rs",
        "token",
        ("if own <= at && own <= above() {", "if own > at && own <= above() {"),
    ),
    bug(
        "the hook of a linked token outlives it",
        "token/tree.rs",
        "token",
        ("other.unhook(id); // after this no thread can find the node", "let _ = id;"),
    ),
    bug(
        "a token linked to a cancelled one is not cancelled",
        "token/tree.rs",
        "token",
        ("if let Some(cause) = other.cause() { self.cancel(cause); }", ""),
    ),
    bug(
        "a passed deadline of a linked token does not count when the other one is cancelled",
        "token/tree.rs",
        "token",
        ("if own <= cause.at {", "if own > cause.at {"),
    ),
    # --- callbacks
    bug(
        "a callback's run begins after the node's lock is released",
        "token/tree.rs",
        "callback",
        ("callback.inspect(|callback| callback.begin())", "callback"),
        (
            "let Some(cause) = node.cause() else { return }; if let Err",
            "callback.begin(); let Some(cause) = node.cause() else { return }; if let Err",
        ),
    ),
    bug(
        "close returns while the callback runs",
        "wait.rs",
        "callback",
        ("|| !self.callback().is_running()", "|| true"),
    ),
    bug(
        "a callback that closes itself waits for its end",
        "wait.rs",
        "callback",
        ("|| callback::is_inside()", ""),
    ),
    bug(
        "the end of a callback wakes no closing thread",
        "token/callback.rs",
        "callback",
        (
            "filter(|ticket| ticket.grant()) { ticket.wake(); }",
            "filter(|ticket| ticket.grant()) {}",
        ),
    ),
    bug(
        "hooks may be added after the cancel",
        "token/tree.rs",
        "callback",
        ("if !self.announce(HAS_HOOKS) { return Err(hook); }", "self.announce(HAS_HOOKS);"),
    ),
    # --- the wait
    bug(
        "a wait is settled without a check of its outcome",
        "park.rs",
        "park",
        (
            "match self.word.compare_exchange(seen, seen | outcome, Ordering::AcqRel, Ordering::Acquire) {",
            "match Ok::<u32, u32>(self.word.swap(outcome | ASLEEP, Ordering::AcqRel)) {",
        ),
    ),
    bug(
        "a grant is published with relaxed ordering",
        "park.rs",
        "park",
        (
            "compare_exchange(seen, seen | outcome, Ordering::AcqRel, Ordering::Acquire)",
            "compare_exchange(seen, seen | outcome, Ordering::Relaxed, Ordering::Relaxed)",
        ),
    ),
    bug(
        "going to sleep overwrites an outcome",
        "park.rs",
        "park",
        (
            "if self.word.compare_exchange(WAITING, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_err() { continue; }",
            "self.word.store(ASLEEP, Ordering::Release);",
        ),
    ),
    bug(
        "a waiter does not publish that it sleeps",
        "park.rs",
        "park",
        (
            "compare_exchange(WAITING, ASLEEP, Ordering::AcqRel, Ordering::Acquire) .is_err()",
            "compare_exchange(WAITING, WAITING, Ordering::AcqRel, Ordering::Acquire) .is_err()",
        ),
        ("sys::wait(&self.word, ASLEEP, until)", "sys::wait(&self.word, WAITING, until)"),
    ),
    bug(
        "a wait in a scope that is cancelled meanwhile is not settled",
        "wait.rs",
        "park",
        ("if hooked.is_none() { waiter.settle(WaitOutcome::Cancelled); }", ""),
    ),
    bug(
        "a cancelled wait for a token leaves its hook on the token",
        "wait.rs",
        "park",
        (
            "fn dequeue(&mut self, _: &Ticket) -> bool { self.hook.take().map(|id| self.node.unhook(id));",
            "fn dequeue(&mut self, _: &Ticket) -> bool {",
        ),
    ),
    bug(
        "a wait leaves its hook in the scope",
        "wait.rs",
        "park",
        ("hook.and_then(|id| node.unhook(id));", "let _ = (node, hook);"),
    ),
    # --- a wait for several things
    bug(
        "a granted waiter stays in the other queues",
        "wait.rs",
        "wait",
        (
            "if granted != Some(which) && waitable.dequeue",
            "if granted.is_none() && waitable.dequeue",
        ),
    ),
    bug(
        "a cancelled waiter stays in all queues but the first",
        "wait.rs",
        "wait",
        ("what[..queued].iter_mut()", "what[..queued.min(1)].iter_mut()"),
    ),
    # --- the latch
    bug(
        "a waiter that times out at a latch stays in its queue",
        "park/latch.rs",
        "latch",
        ("if outcome != WaitOutcome::Granted { self.dequeue", "if false { self.dequeue"),
    ),
    # --- the lock
    bug(
        "a waiter that has stopped waiting is woken for the free lock",
        "sync/lock.rs",
        "lock",
        (
            "find(|request| request.ticket.grant())",
            "find(|request| request.ticket.grant() || state.poison.is_none())",
        ),
    ),
    bug(
        "a waiter queues for a lock that has been released meanwhile",
        "sync/lock.rs",
        "lock",
        (
            "match self.core.is_free_for(&mut state, &self.ledger, &self.acquisition) {",
            "match self.core.is_free_for(&mut state, &self.ledger, &self.acquisition).map(|_| false) {",
        ),
    ),
    bug(
        "a released lock stays in its holder's ledger",
        "sync/lock.rs",
        "lock",
        (
            "entry = holder.remove_latest(Arc::as_ptr(self).cast());",
            "entry = None::<(Arc<dyn Resource>, Hold)>;",
        ),
    ),
    bug(
        "a waiter that was woken for the free lock counts as its holder",
        "sync/lock.rs",
        "lock",
        (
            "state.notified = None; let taken = self.core.take_if_free(&mut state, &self.ledger, &self.acquisition)?;",
            "state.notified = None; let taken = self.core.take_if_free(&mut state, &self.ledger, &self.acquisition)? || true;",
        ),
    ),
    bug(
        "a waiter that has tried for the lock does not record it",
        "sync/lock.rs",
        "lock",
        ("state.notified = None;", ""),
    ),
    bug(
        "a waiter that has waited for too long is woken without a hand-over",
        "sync/lock.rs",
        "lock",
        ("if is_overdue(request.since) {", "if is_overdue(request.since) && self.reentrant {"),
    ),
    bug(
        "a lock that is handed over is not recorded",
        "sync/lock.rs",
        "lock",
        (
            "self.assign(state, &request.ledger, &request.acquisition);",
            "state.depth = 1; state.holder = Some(request.ledger.clone());",
        ),
    ),
    bug(
        "the lock is passed on before it is poisoned",
        "sync/lock.rs",
        "lock",
        (
            "if state.depth == 0 { self.mark_free(state)",
            "if state.depth == 0 { let poison = state.poison.take(); let wake = self.mark_free(state); state.poison = poison; wake",
        ),
    ),
    bug(
        "the epoch stays when the lock gets a new holder",
        "sync/lock.rs",
        "lock",
        ("state.epoch += 1;", ""),
    ),
    bug(
        "the late end of a stale hold releases the current hold",
        "sync/lock/guard.rs",
        "lock",
        (
            "self.core.release_hold(&self.ledger, hold, termination.as_ref()).ok_or(Fenced)",
            "self.core.release(false, termination.as_ref().filter(|_| hold == hold)).map_err(|_| Fenced)",
        ),
    ),
    bug(
        "a fenced lock is lost with its holder",
        "sync/lock.rs",
        "lock",
        ("!self.fenced || hold.is_none_or(", "hold.is_some() || hold.is_none_or("),
    ),
    bug(
        "a partial update is not rolled back before others get the lock",
        "sync/lock.rs",
        "lock",
        (
            "if self.undo.as_ref().is_some_and(|undo| undo.undo()) {",
            "if self.undo.is_some() {",
        ),
    ),
    bug(
        "a stale holder changes the value of the current one",
        "sync/lock/guard.rs",
        "lock",
        ("self.check()?; let result = act();", "let result = act();"),
    ),
    bug(
        "only one waiter is woken by the poison",
        "sync/lock.rs",
        "lock",
        (
            "if state.poison.is_some() { // Poisoned",
            "if state.poison.is_some() && state.queue.len() < 2 { // Poisoned",
        ),
    ),
    bug(
        "a lock that was acquired twice is free after one release",
        "sync/lock.rs",
        "lock",
        (
            "if state.depth == 0 { self.mark_free(state)",
            "if state.depth < 2 { self.mark_free(state)",
        ),
    ),
    bug(
        "a reacquired lock is held once, whatever its count was",
        "sync/lock.rs",
        "lock",
        ("holds.len() }", "1 }"),
    ),
    # --- the semaphore
    bug(
        "a permit is handed to a waiter that has stopped waiting",
        "sync/semaphore.rs",
        "semaphore",
        (
            "find(|request| request.ticket.grant())",
            "find(|request| request.ticket.grant() || permits > 0)",
        ),
    ),
    bug(
        "a waiter queues for a permit that has been released meanwhile",
        "sync/semaphore.rs",
        "semaphore",
        ("if state.free == 0 { let ledger", "if state.free < 9 { let ledger"),
    ),
    bug(
        "permits beyond those of the waiters are lost",
        "sync/semaphore.rs",
        "semaphore",
        (
            "state.free += permits - wake.len();",
            "if wake.is_empty() { state.free += permits; }",
        ),
    ),
    bug(
        "a cancelled waiter stays in the semaphore's queue",
        "sync/semaphore.rs",
        "semaphore",
        ("queue.retain(|request| request.ticket != *ticket);", "let _ = (queue, ticket);"),
    ),
    bug(
        "a permit that is handed over is not recorded",
        "sync/semaphore.rs",
        "semaphore",
        ("self.record(state, request.ledger.as_ref());", ""),
    ),
    bug(
        "a waiter does not wait until its permit is recorded",
        "sync/semaphore.rs",
        "semaphore",
        ("drop(self.core.state.lock());", ""),
    ),
    bug(
        "a sweep releases a permit that its block has released",
        "sync/semaphore.rs",
        "semaphore",
        (
            "remove(Arc::as_ptr(&self).cast(), hold)?;",
            "remove(Arc::as_ptr(&self).cast(), hold);",
        ),
    ),
    # --- the event
    bug(
        "a waiter does not check whether the event has been set",
        "sync/event.rs",
        "event",
        ("if state.set { ticket.grant", "if false { ticket.grant"),
    ),
    bug(
        "a set that is cleared again is lost for its waiters",
        "sync/event.rs",
        "event",
        (
            "fn collect(&mut self) -> Result<Option<()>, Stop> { Ok(Some(())) }",
            "fn collect(&mut self) -> Result<Option<()>, Stop> { self.attempt() }",
        ),
    ),
    bug(
        "a cancelled waiter stays in the event's queue",
        "sync/event.rs",
        "event",
        ("self.state.lock().waiting.remove(ticket);", "let _ = ticket;"),
    ),
    # --- the condition
    bug(
        "the lock is released before the waiter is queued",
        "sync/condition.rs",
        "condition",
        (
            "self.condition.waiting.lock().push(ticket.clone()); let released = self.condition.lock.release_all();",
            "let released = self.condition.lock.release_all(); self.condition.waiting.lock().push(ticket.clone());",
        ),
    ),
    bug(
        "a notify goes to a waiter that has stopped waiting",
        "park.rs",
        "condition",
        (".find(Ticket::grant)", ".inspect(|ticket| _ = ticket.grant()).next()"),
    ),
    bug(
        "a cancelled waiter does not reacquire its lock",
        "sync/condition.rs",
        "condition",
        ("Some(Ok(holds)) =>", "Some(Ok(_)) if notified.is_err() => {} Some(Ok(holds)) =>"),
    ),
    bug(
        "a cancelled waiter stays in the condition's queue",
        "sync/condition.rs",
        "condition",
        ("self.condition.waiting.lock().remove(ticket); false", "let _ = ticket; false"),
    ),
    # --- the barrier
    bug(
        "a party that stops waiting is still counted",
        "sync/barrier.rs",
        "barrier",
        ("state.arrived -= 1;", ""),
    ),
    bug(
        "a party that stops waiting when all are there is taken out",
        "sync/barrier.rs",
        "barrier",
        (
            "if round.phase() != RoundPhase::Filling { return true; }",
            "if round.phase() != RoundPhase::Filling { return false; }",
        ),
    ),
    bug(
        "a party that comes after one has left gets a number twice",
        "sync/barrier.rs",
        "barrier",
        ("**earlier < before).count()", "**earlier < before).count() * 0"),
    ),
    bug(
        "a party does not check whether it has become the last one",
        "sync/barrier.rs",
        "barrier",
        (
            "if state.broken || filling && state.arrived + 1 == self.barrier.parties {",
            "if state.broken {",
        ),
    ),
    bug(
        "a party does not check whether the barrier has been broken",
        "sync/barrier.rs",
        "barrier",
        (
            "if state.broken || filling && state.arrived + 1 == self.barrier.parties {",
            "if filling && state.arrived + 1 == self.barrier.parties {",
        ),
    ),
    bug(
        "the last party wakes no other",
        "sync/barrier.rs",
        "barrier",
        (
            "self.waiting.grant_all().iter().for_each(Ticket::wake);",
            "self.waiting.grant_all();",
        ),
    ),
    bug(
        "an early party of the next round is counted in this one",
        "sync/barrier.rs",
        "barrier",
        ("if filling { let before", "if filling || !state.broken { let before"),
    ),
    bug(
        "the others wait forever if the last party fails to open",
        "sync/barrier.rs",
        "barrier",
        (
            "if self.round.phase() == RoundPhase::Opening { state.end_round(RoundPhase::Broken, true); }",
            "state.broken = true;",
        ),
    ),
    # --- the queue
    bug(
        "an item is handed to a get that has stopped waiting",
        "sync/queue.rs",
        "queue",
        ("if getter.ticket.grant() { *slot", "if getter.ticket.grant() || !self.shut { *slot"),
    ),
    bug(
        "a get is granted before its item is stored",
        "sync/queue.rs",
        "queue",
        (
            "let mut slot = getter.slot.lock(); if getter.ticket.grant() { *slot = Some(item);",
            "if getter.ticket.grant() { *getter.slot.lock() = Some(item);",
        ),
    ),
    bug(
        "a get does not check for an item that came before it queued",
        "sync/queue.rs",
        "queue",
        ("if state.shut || !state.items.is_empty() {", "if state.shut {"),
    ),
    bug(
        "the item of a put that has stopped waiting is put",
        "sync/queue.rs",
        "queue",
        (
            "if putter.ticket.grant() { self.items",
            "if putter.ticket.grant() || !self.shut { self.items",
        ),
    ),
    bug(
        "a put does not check for room that came before it queued",
        "sync/queue.rs",
        "queue",
        ("if state.shut || !state.is_full() {", "if state.shut {"),
    ),
    bug(
        "free room wakes no waiting put",
        "sync/queue.rs",
        "queue",
        (
            "while let Some(putter) = self.putters.pop_front() {",
            "while let Some(putter) = self.putters.pop_front().filter(|_| self.shut) {",
        ),
    ),
    bug(
        "a shutdown does not wake waiting puts",
        "sync/queue.rs",
        "queue",
        (
            "let putters = std::mem::take(&mut state.putters);",
            "let putters = VecDeque::<Putter<T>>::new();",
        ),
    ),
    bug(
        "a shutdown does not wake waiting gets",
        "sync/queue.rs",
        "queue",
        (
            "let getters = std::mem::take(&mut state.getters);",
            "let getters = VecDeque::<Getter<T>>::new();",
        ),
    ),
    bug(
        "a cancelled get stays in the queue's wait queue",
        "sync/queue.rs",
        "queue",
        (
            "state.getters.retain(|getter| getter.ticket != *ticket);",
            "let _ = (&mut state, ticket);",
        ),
    ),
    bug(
        "a cancelled put stays in the queue's wait queue",
        "sync/queue.rs",
        "queue",
        (
            "state.putters.retain(|putter| putter.ticket != *ticket);",
            "let _ = (&mut state, ticket);",
        ),
    ),
    bug(
        "the last task_done wakes no join",
        "sync/queue.rs",
        "queue",
        ("joined.iter().for_each(Ticket::wake); Ok(())", "drop(joined); Ok(())"),
    ),
    # --- the lease queue
    bug(
        "put wakes no waiting worker",
        "work/memory.rs",
        "lease",
        (
            "while let Some(granted) = self.lease_to_waiter() { wake.push(granted); }",
            "",
        ),
    ),
    bug(
        "an item is leased to a waiter that has stopped waiting",
        "work/memory.rs",
        "lease",
        (
            "if request.ticket.grant() { *slot = self.lease(*holder)",
            "if request.ticket.grant() || !self.closed { *slot = self.lease(*holder)",
        ),
    ),
    bug(
        "a lease does not check for an item that came before it queued",
        "work/memory/waits.rs",
        "lease",
        (
            "if shared.closed || shared.state.has_ready() ||",
            "if shared.closed ||",
        ),
    ),
    bug(
        "close wakes no waiter",
        "work/memory.rs",
        "lease",
        (
            "while self.closed || self.state.has_ready()",
            "while self.state.has_ready()",
        ),
    ),
    bug(
        "the end of the last lease wakes no drain",
        "work/memory.rs",
        "lease",
        (
            "if self.state.is_drained() { for request",
            "if self.closed && self.state.is_drained() { for request",
        ),
    ),
    bug(
        "a stale lease is taken for the current one",
        "work/memory/state.rs",
        "lease",
        (
            "item.entry.state != (ItemState::Leased { epoch })",
            "epoch == 0 || !matches!(item.entry.state, ItemState::Leased { .. })",
        ),
        (
            ".filter(|item| item.entry.state == ItemState::Leased { epoch })",
            ".filter(|item| epoch != 0 && matches!(item.entry.state, ItemState::Leased { .. }))",
        ),
    ),
    bug(
        "the end of an item wakes no waiting put",
        "work/memory.rs",
        "lease",
        (
            "while let Some(granted) = self.put_for_waiter() { wake.push(granted); }",
            "",
        ),
    ),
    bug(
        "an item is put for a put that has stopped waiting",
        "work/memory.rs",
        "lease",
        (
            "if request.ticket.grant() { slot.put_into",
            "if request.ticket.grant() || !self.closed { slot.put_into",
        ),
    ),
    bug(
        "a lease queue's put does not check for room that came before it queued",
        "work/memory/waits.rs",
        "lease",
        (
            "if shared.state.has_room(options) || shared.is_behind()",
            "if shared.is_behind()",
        ),
    ),
    bug(
        "a key is looked up only before the wait for room",
        "work/memory/state.rs",
        "lease",
        (
            "if let Some(id) = self.find(options) { return Ok((id, Some(value))); }",
            "",
        ),
    ),
    # --- the gate of a worker
    bug(
        "a worker that waits for an item is not told that it is paused or retired",
        "work/gate.rs",
        "gate",
        (".filter(|_| is_shut)", ".filter(|_| !is_shut)"),
    ),
    bug(
        "a worker looks at the flags before it can be told",
        "work/gate.rs",
        "gate",
        (
            "} else { state.leasing = Some(node.clone());",
            "} else { drop(state); state = self.state.lock(); state.leasing = Some(node.clone());",
        ),
    ),
    bug(
        "a pause does not wait for a lease that has begun",
        "work/gate.rs",
        "gate",
        (
            "state.leasing = Some(node.clone()); self.outside.clear();",
            "state.leasing = Some(node.clone());",
        ),
    ),
    bug(
        "a worker is outside before it has leased",
        "work/gate.rs",
        "gate",
        ("let leased = lease(); self.leave();", "self.leave(); let leased = lease();"),
    ),
    bug(
        "a paused worker that is retired goes on waiting",
        "work/gate.rs",
        "gate",
        ("if state.paused && !state.retired {", "if state.paused {"),
    ),
    # --- the task's boundary
    bug(
        "a kill that came just before a wait does not end it",
        "task.rs",
        "task",
        (
            "inner.due(&self.ledger) { // Not woken",
            "inner.due(&self.ledger).filter(|_| inner.posted) { // Not woken",
        ),
    ),
    bug(
        "a task that has ended can be abandoned",
        "task/deliver.rs",
        "task",
        (
            "if inner.phase != Phase::Running { return false; } inner.phase = Phase::Abandoned;",
            "inner.phase = Phase::Abandoned;",
        ),
    ),
    bug(
        "masks do not defer a kill",
        "task/block.rs",
        "task",
        ("mask.end(request) <= now)", "mask.end(request) <= now || !self.posted)"),
    ),
    bug(
        "held locks do not defer a kill",
        "task/block.rs",
        "task",
        ("|| !ledger.holds_since(recorded))", "|| ledger.len() < 9)"),
    ),
)


def anywhere(text: str) -> re.Pattern[str]:
    """Match the text in any line breaks, because a formatter may have moved them."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    # The formatter may have put a comma before a closing bracket.
    return re.compile(
        r"\s*".join(r",?\s*" * (token in ")}]") + re.escape(token) for token in tokens)
    )


def plant(planted: Bug) -> bool:
    """Make a fresh copy of the source with the bug in it. False if the text is not found once."""
    TREE.mkdir(parents=True, exist_ok=True)
    # Only files that differ are written, so that cargo builds no more than needed.
    wanted = {
        path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "src").rglob("*.rs"))
    }
    for name in ("Cargo.toml", "Cargo.lock"):
        wanted[Path(name)] = (ROOT / name).read_text()
    wanted[Path("tests/rust/main.rs")] = ""
    source = wanted[Path(planted.file)]
    for old, new in planted.edits:
        source, found = anywhere(old).subn(new.replace("\\", r"\\"), source)
        if found != 1:
            return False
    wanted[Path(planted.file)] = source
    for old_file in (TREE / "src").rglob("*.rs"):
        if old_file.relative_to(TREE) not in wanted:
            old_file.unlink()
    for relative, text in wanted.items():
        path = TREE / relative
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return True


def build() -> str | None:
    """Build the models. Returns the test binary, or `None` if they do not compile."""
    env = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "build"))
    env["RUSTFLAGS"] = f"{env.get('RUSTFLAGS', '')} --cfg loom -Awarnings".strip()
    # Building with full optimisation would take longer than it saves.
    env.update(
        CARGO_PROFILE_RELEASE_LTO="off",
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS="16",
        CARGO_PROFILE_RELEASE_DEBUG="0",
    )
    command = ["cargo", "test", "--release", "--locked", "--lib", "--no-run"]
    built = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        sys.stderr.write(built.stderr)
        return None
    found = re.search(r"Executable.*\((.*)\)", built.stderr)
    assert found, built.stderr
    return str((TREE / found.group(1)).resolve())


def find(binary: str, models: str) -> str | None:
    """Run the models until one fails. Returns how the bug was found, or `None`."""
    command = [binary, models, "--test-threads=2"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=WORK
    )
    timer = threading.Timer(LONGEST, run.kill)
    timer.start()
    began = time.monotonic()
    try:
        assert run.stdout
        for line in run.stdout:
            failed = re.match(r"test models::(\S+) \.\.\. FAILED", line)
            if failed:
                return failed.group(1).replace("::loom_", ": ")
        code = run.wait()
    finally:
        timer.cancel()
        run.kill()
        run.wait()
    if code == 0:
        return None
    if time.monotonic() - began >= LONGEST:
        return "a model that hung"
    return f"an abort (exit {code}): a deadlock that loom reported, or a crash"


def main(arguments: list[str]) -> int:
    """Plant, build and run; print a line for each bug."""
    chosen = [
        one
        for one in BUGS
        if not arguments or any(word in f"{one.name} {one.file} {one.models}" for word in arguments)
    ]
    if arguments == ["--list"]:
        print(*(f"{one.file:20} {one.name}" for one in BUGS), sep="\n")
        return 0
    missed = 0
    for number, one in enumerate(chosen, 1):
        began = time.monotonic()
        if not plant(one):
            verdict, how = "STALE", "its text is not in the source, or not once"
        elif (binary := build()) is None:
            verdict, how = "BROKEN", "it does not compile"
        elif (found := find(binary, one.models)) is None:
            verdict, how = "MISSED", f"{one.models}* pass"
        else:
            verdict, how = "caught", found
        missed += verdict != "caught"
        seconds = time.monotonic() - began
        print(
            f"{verdict:6} {number:2}/{len(chosen)} {seconds:4.0f} s  {one.file}: {one.name}\n          by {how}",
            flush=True,
        )
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    shutil.rmtree(TREE, ignore_errors=True)
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
