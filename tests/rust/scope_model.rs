//! The rules of scopes as a model that runs beside the real implementation.
//!
//! A unit test of `src/scope.rs`, because it needs a clock that stands still. Random programs of
//! nested scopes run twice: in [`rules`], which has only a list of frames and a number for the time,
//! and in the implementation. Both record the events; the lists must be equal. The invariants (I1, I3
//! to I8) are checked once more, on the list of the implementation alone, so that an error in the
//! model cannot hide one.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Scope, cancel_scope, cleanup, current_effective_deadline, current_nodes, fail_after,
    move_on_after, shield,
};
use crate::boundary::{BodyEnd, Boundary};
use crate::cause::CauseKind;
use crate::clock::{Time, testing};
use crate::error::{AsStop, DeadlineExceeded, Stop};
use crate::task::Task;

/// All times of a program are whole seconds from its start.
type Seconds = u64;

/// The grace of clean-up zones where the cancel has none.
const DEFAULT_GRACE: Seconds = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    CancelScope,
    MoveOnAfter,
    FailAfter,
    Shield,
    Cleanup,
    /// The frame around the whole program, if it runs as a task.
    Task,
}

/// One statement of a program. `up`: the number of scopes further out.
#[derive(Debug, Clone)]
enum Step {
    /// A block; its error is caught behind it, or propagated.
    Block {
        kind: Kind,
        timeout: Option<Seconds>,
        body: Vec<Step>,
        catch: bool,
    },
    /// A checkpoint; a stop is propagated, or swallowed.
    Checkpoint {
        swallow: bool,
    },
    /// Cancel an open scope, visible or not.
    Cancel {
        up: usize,
    },
    /// Cancel the task around the program, with this grace.
    CancelTask {
        grace: Option<Seconds>,
    },
    /// Move the deadline of a scope that is visible from here.
    SetDeadline {
        up: usize,
        to: Seconds,
    },
    Advance {
        by: Seconds,
    },
    /// Raise again the stop that was swallowed last, wherever it came from.
    RaiseOld,
    /// Fail with an error of the program.
    Fail,
}

#[derive(Debug, Clone)]
struct Program {
    as_task: bool,
    body: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cause {
    deadline: bool,
    at: Seconds,
}

/// The error that leaves a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Error {
    Stop(Cause),
    DeadlineExceeded,
    Own,
}

/// The end of a block, as seen by the code behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    /// Left early, without an error.
    Quiet,
    Raised(Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Looked {
        now: Seconds,
        raised: Option<Cause>,
    },
    Entered {
        now: Seconds,
        kind: Kind,
        deadline: Option<Seconds>,
    },
    Left {
        now: Seconds,
        kind: Kind,
        unwinding: Option<Error>,
        end: End,
    },
}

// ---------------------------------------------------------------------- the model

mod rules {
    use super::{Cause, DEFAULT_GRACE, End, Error, Event, Kind, Program, Seconds, Step};

    struct Frame {
        kind: Kind,
        deadline: Option<Seconds>,
        /// Final once it is set.
        cause: Option<Cause>,
        /// The grace of its own cancellation, if the cancel had one.
        grace: Option<Seconds>,
        /// The earliest end of zones inside that a later cancel has named.
        end: Option<Seconds>,
    }

    #[derive(Default)]
    struct World {
        now: Seconds,
        frames: Vec<Frame>,
        old: Option<Error>,
        events: Vec<Event>,
    }

    pub(super) fn run(program: &Program) -> Vec<Event> {
        let mut world = World::default();
        if program.as_task {
            world.frames.push(Frame {
                kind: Kind::Task,
                deadline: None,
                cause: None,
                grace: None,
                end: None,
            });
        }
        let _ = world.steps(&program.body);
        world.events
    }

    /// Whether frames further out are visible through this kind of frame.
    fn is_open(kind: Kind) -> bool {
        matches!(
            kind,
            Kind::CancelScope | Kind::MoveOnAfter | Kind::FailAfter
        )
    }

    /// The outermost frame that is visible from inside frame `from`.
    fn outermost_visible(frames: &[Frame], from: usize) -> usize {
        (0..=from)
            .rev()
            .find(|at| *at == 0 || !is_open(frames[*at].kind))
            .unwrap_or(0)
    }

    /// Cancel one frame, and so all inner ones that see it; each keeps its first cause.
    fn cancel(frames: &mut [Frame], target: usize, cause: Cause, grace: Option<Seconds>) {
        if frames[target].cause.is_some() {
            let end = grace.map(|grace| cause.at + grace);
            frames[target].end = [frames[target].end, end].into_iter().flatten().min();
            return;
        }
        for inner in target..frames.len() {
            if outermost_visible(frames, inner) <= target && frames[inner].cause.is_none() {
                frames[inner].cause = Some(cause);
                frames[inner].grace = grace;
            }
        }
    }

    /// The end of a zone that opens behind these frames: each cancelled frame that a plain scope would
    /// see ends it after the grace. An outer zone passes on its own end.
    fn cutoff(outside: &[Frame]) -> Option<Seconds> {
        let last = outside.len().checked_sub(1)?;
        let visible = &outside[outermost_visible(outside, last)..];
        let ends = visible.iter().filter_map(|frame| {
            let began = frame.cause.map(|cause| cause.at).or(frame.deadline)?;
            let default = if frame.kind == Kind::Cleanup {
                0
            } else {
                DEFAULT_GRACE
            };
            let first = began + frame.grace.unwrap_or(default);
            Some(frame.end.map_or(first, |end| end.min(first)))
        });
        ends.min()
    }

    impl World {
        /// Move the ends of zones, and turn passed deadlines into causes, in order of time.
        fn settle(&mut self) {
            for at in 0..self.frames.len() {
                if self.frames[at].kind == Kind::Cleanup {
                    let now_known = cutoff(&self.frames[..at]);
                    let zone = &mut self.frames[at];
                    zone.deadline = [zone.deadline, now_known].into_iter().flatten().min();
                }
            }
            let mut passed: Vec<(Seconds, usize)> = (self.frames.iter().enumerate())
                .filter_map(|(at, frame)| Some((frame.deadline?, at)))
                .filter(|(deadline, _)| *deadline <= self.now)
                .collect();
            passed.sort_unstable();
            for (at, target) in passed {
                cancel(&mut self.frames, target, Cause { deadline: true, at }, None);
            }
        }

        fn steps(&mut self, steps: &[Step]) -> Result<(), Error> {
            for step in steps {
                self.step(step)?;
            }
            Ok(())
        }

        fn step(&mut self, step: &Step) -> Result<(), Error> {
            match step {
                Step::Block {
                    kind,
                    timeout,
                    body,
                    catch,
                } => match self.block(*kind, *timeout, body) {
                    End::Raised(error) if *catch => self.keep(error),
                    End::Raised(error) => return Err(error),
                    End::Done | End::Quiet => {}
                },
                Step::Checkpoint { swallow } => {
                    let raised = self.frames.last().and_then(|frame| frame.cause);
                    self.events.push(Event::Looked {
                        now: self.now,
                        raised,
                    });
                    match raised.map(Error::Stop) {
                        Some(error) if *swallow => self.keep(error),
                        Some(error) => return Err(error),
                        None => {}
                    }
                }
                Step::Cancel { up } => {
                    let target = self.frames.len().checked_sub(up + 1);
                    if let Some(target) = target.filter(|at| can_cancel(self.frames[*at].kind)) {
                        self.cancel(target, None);
                    }
                }
                Step::CancelTask { grace } => {
                    if self
                        .frames
                        .first()
                        .is_some_and(|frame| frame.kind == Kind::Task)
                    {
                        self.cancel(0, *grace);
                    }
                }
                Step::SetDeadline { up, to } => {
                    let visible = self.frames.len().checked_sub(1);
                    let visible = visible.map(|last| outermost_visible(&self.frames, last));
                    let target = self.frames.len().checked_sub(up + 1);
                    let target = target.filter(|at| visible.is_some_and(|first| *at >= first));
                    if let Some(target) = target.filter(|at| can_cancel(self.frames[*at].kind)) {
                        self.frames[target].deadline = Some(*to);
                    }
                }
                Step::Advance { by } => self.now += by,
                Step::RaiseOld => self.old.map_or(Ok(()), Err)?,
                Step::Fail => return Err(Error::Own),
            }
            self.settle();
            Ok(())
        }

        fn cancel(&mut self, target: usize, grace: Option<Seconds>) {
            let cause = Cause {
                deadline: false,
                at: self.now,
            };
            cancel(&mut self.frames, target, cause, grace);
        }

        fn keep(&mut self, error: Error) {
            if matches!(error, Error::Stop(_)) {
                self.old = Some(error);
            }
        }

        fn block(&mut self, kind: Kind, timeout: Option<Seconds>, body: &[Step]) -> End {
            // A block that sees a cancelled one is cancelled from the start.
            let around = self.frames.last().filter(|_| is_open(kind));
            let (cause, grace) = around.map_or((None, None), |frame| (frame.cause, frame.grace));
            let own = timeout.filter(|_| kind != Kind::Cleanup);
            let deadline = own.map(|timeout| self.now + timeout);
            self.frames.push(Frame {
                kind,
                deadline,
                cause,
                grace,
                end: None,
            });
            self.settle();
            let last = self.frames.len() - 1;
            let visible = &self.frames[outermost_visible(&self.frames, last)..];
            let deadline = visible.iter().filter_map(|frame| frame.deadline).min();
            self.events.push(Event::Entered {
                now: self.now,
                kind,
                deadline,
            });

            let result = self.steps(body);
            self.settle();
            let absorbs = matches!(result, Err(Error::Stop(_))) && {
                let last = self.frames.len() - 1;
                let first_visible = outermost_visible(&self.frames, last);
                let outermost = (first_visible..=last).find(|at| self.frames[*at].cause.is_some());
                outermost == Some(last)
            };
            let frame = self.frames.pop().expect("pushed above");
            let by_deadline = frame.cause.is_some_and(|cause| cause.deadline);
            let end = match (result, kind) {
                (Ok(()), _) => End::Done,
                (Err(error), _) if !absorbs => End::Raised(error),
                (Err(_), Kind::FailAfter) => End::Raised(Error::DeadlineExceeded),
                (Err(_), Kind::CancelScope) if by_deadline => End::Raised(Error::DeadlineExceeded),
                (Err(_), _) => End::Quiet,
            };
            self.events.push(Event::Left {
                now: self.now,
                kind,
                unwinding: result.err(),
                end,
            });
            end
        }
    }

    fn can_cancel(kind: Kind) -> bool {
        matches!(kind, Kind::CancelScope | Kind::MoveOnAfter)
    }
}

// ---------------------------------------------------------------------- the implementation

/// The error type of a program, as users write it.
#[derive(Debug)]
enum Raised {
    Stop(Stop),
    DeadlineExceeded,
    Own,
}

impl AsStop for Raised {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Raised::Stop(stop) => Some(stop),
            _ => None,
        }
    }
}

impl From<DeadlineExceeded> for Raised {
    fn from(_: DeadlineExceeded) -> Self {
        Raised::DeadlineExceeded
    }
}

/// Runs a program in the implementation and records the events.
struct Machine<'a> {
    clock: &'a testing::Frozen,
    start: Time,
    task: Option<&'a Task>,
    old: Option<Stop>,
    events: Vec<Event>,
}

/// The open scopes, including those without a handle in the program.
struct Open<'a> {
    scope: Option<&'a Scope>,
    kind: Kind,
    outer: Option<&'a Open<'a>>,
}

fn run_for_real(program: &Program) -> Vec<Event> {
    let clock = testing::freeze();
    let task = program.as_task.then(|| Task::new("program", None));
    let boundary = task.as_ref().map(|task| Boundary::enter(task, None));
    let mut machine = Machine {
        clock: &clock,
        start: Time::now(),
        task: task.as_deref(),
        old: None,
        events: Vec::new(),
    };
    let _ = machine.steps(&program.body, None);
    if let Some(boundary) = boundary {
        boundary.leave(BodyEnd::Unwound);
    }
    machine.events
}

impl Machine<'_> {
    fn now(&self) -> Seconds {
        (Time::now() - self.start).as_secs()
    }

    fn seconds(&self, time: Time) -> Option<Seconds> {
        (!time.is_never()).then(|| (time - self.start).as_secs())
    }

    fn cause(&self, cause: &crate::Cause) -> Cause {
        let deadline = cause.kind == CauseKind::Deadline;
        assert!(deadline || cause.kind == CauseKind::Explicit, "{cause:?}");
        Cause {
            deadline,
            at: (cause.at - self.start).as_secs(),
        }
    }

    fn error(&self, raised: &Raised) -> Error {
        match raised {
            Raised::Stop(Stop::Cancelled(cause)) => Error::Stop(self.cause(cause)),
            Raised::Stop(other) => panic!("there are no kills here: {other:?}"),
            Raised::DeadlineExceeded => Error::DeadlineExceeded,
            Raised::Own => Error::Own,
        }
    }

    fn steps(&mut self, steps: &[Step], open: Option<&Open<'_>>) -> Result<(), Raised> {
        for step in steps {
            self.step(step, open)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, open: Option<&Open<'_>>) -> Result<(), Raised> {
        match step {
            Step::Block {
                kind,
                timeout,
                body,
                catch,
            } => match self.block(*kind, *timeout, body, open) {
                Err(error) if *catch => self.keep(error),
                Err(error) => return Err(error),
                Ok(()) => {}
            },
            Step::Checkpoint { swallow } => {
                let looked = crate::checkpoint();
                let raised = match &looked {
                    Ok(()) => None,
                    Err(Stop::Cancelled(cause)) => Some(self.cause(cause)),
                    Err(other) => panic!("there are no kills here: {other:?}"),
                };
                let now = self.now();
                self.events.push(Event::Looked { now, raised });
                match looked.map_err(Raised::Stop) {
                    Err(error) if *swallow => self.keep(error),
                    other => return other,
                }
            }
            Step::Cancel { up } => {
                if let Some(scope) = nth(open, *up, |_| true) {
                    scope.cancel();
                }
            }
            Step::CancelTask { grace } => {
                if let Some(task) = self.task {
                    task.source()
                        .cancel_with(None, grace.map(Duration::from_secs));
                }
            }
            Step::SetDeadline { up, to } => {
                let see_through = |kind| !matches!(kind, Kind::Shield | Kind::Cleanup);
                if let Some(scope) = nth(open, *up, see_through) {
                    // No checkpoint in between: a deadline that is moved back has not passed.
                    current_nodes().inner().map(|node| node.poll(Time::now()));
                    scope.set_deadline(self.start + Duration::from_secs(*to));
                    current_nodes().inner().map(|node| node.poll(Time::now()));
                }
            }
            Step::Advance { by } => self.clock.advance(Duration::from_secs(*by)),
            Step::RaiseOld => {
                return self
                    .old
                    .clone()
                    .map_or(Ok(()), |stop| Err(Raised::Stop(stop)));
            }
            Step::Fail => return Err(Raised::Own),
        }
        Ok(())
    }

    fn keep(&mut self, error: Raised) {
        if let Raised::Stop(stop) = error {
            self.old = Some(stop);
        }
    }

    /// `Err`: the error that leaves the block.
    fn block(
        &mut self,
        kind: Kind,
        timeout: Option<Seconds>,
        body: &[Step],
        outer: Option<&Open<'_>>,
    ) -> Result<(), Raised> {
        let mut unwinding = None;
        let bound = timeout.map_or(Duration::MAX, Duration::from_secs);
        let mut inside = |scope: Option<&Scope>| {
            let now = self.now();
            let deadline = self.seconds(current_effective_deadline());
            self.events.push(Event::Entered {
                now,
                kind,
                deadline,
            });
            let result = self.steps(body, Some(&Open { scope, kind, outer }));
            unwinding = result.as_ref().err().map(|error| self.error(error));
            result
        };
        let result = match kind {
            Kind::CancelScope => cancel_scope(bound, |scope| inside(Some(scope))),
            Kind::MoveOnAfter => move_on_after(bound, |scope| inside(Some(scope))),
            Kind::FailAfter => fail_after(bound, || inside(None)).map(Some),
            Kind::Shield => shield(bound, || inside(None)),
            Kind::Cleanup => cleanup(|| inside(None)),
            Kind::Task => unreachable!("a program opens none"),
        };
        let end = match &result {
            Ok(Some(())) => End::Done,
            Ok(None) => End::Quiet,
            Err(error) => End::Raised(self.error(error)),
        };
        self.events.push(Event::Left {
            now: self.now(),
            kind,
            unwinding,
            end,
        });
        result.map(|_| ())
    }
}

/// The handle of the scope `up` levels out, if the program has one and the scope is visible.
fn nth<'a>(
    open: Option<&'a Open<'a>>,
    up: usize,
    through: impl Fn(Kind) -> bool,
) -> Option<&'a Scope> {
    let mut open = open?;
    for _ in 0..up {
        if !through(open.kind) {
            return None;
        }
        open = open.outer?;
    }
    open.scope
}

// ---------------------------------------------------------------------- random programs

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::CancelScope),
        2 => Just(Kind::MoveOnAfter),
        2 => Just(Kind::FailAfter),
        1 => Just(Kind::Shield),
        2 => Just(Kind::Cleanup),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leaf = prop_oneof![
        5 => any::<bool>().prop_map(|swallow| Step::Checkpoint { swallow }),
        2 => (0..4usize).prop_map(|up| Step::Cancel { up }),
        1 => prop::option::of(0..8u64).prop_map(|grace| Step::CancelTask { grace }),
        1 => (0..4usize, 0..30u64).prop_map(|(up, to)| Step::SetDeadline { up, to }),
        3 => (0..7u64).prop_map(|by| Step::Advance { by }),
        1 => Just(Step::RaiseOld),
        1 => Just(Step::Fail),
    ];
    let step = leaf.prop_recursive(5, 48, 5, |step| {
        // No more than that: from the tenth raise in one scope, checkpoints slow the program down.
        let body = prop::collection::vec(step, 1..8);
        (
            kinds(),
            prop::option::weighted(0.7, 0..12u64),
            body,
            any::<bool>(),
        )
            .prop_map(|(kind, timeout, body, catch)| Step::Block {
                kind,
                timeout,
                body,
                catch,
            })
    });
    prop::collection::vec(step, 1..8)
}

fn programs() -> impl Strategy<Value = Program> {
    (any::<bool>(), steps()).prop_map(|(as_task, body)| Program { as_task, body })
}

/// The events of the implementation, each with the frames open at it, by their index in the list of
/// events.
fn with_open_frames(events: &[Event]) -> Vec<(Vec<usize>, &Event)> {
    let mut open = Vec::new();
    let mut result = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if matches!(event, Event::Entered { .. }) {
            open.push(at);
        }
        result.push((open.clone(), event));
        if matches!(event, Event::Left { .. }) {
            open.pop();
        }
    }
    result
}

fn kind_at(events: &[Event], at: usize) -> Kind {
    match events[at] {
        Event::Entered { kind, .. } => kind,
        _ => unreachable!("a frame is named by its entry"),
    }
}

fn hides(kind: Kind) -> bool {
    matches!(kind, Kind::Shield | Kind::Cleanup)
}

fn absorbed(unwinding: Option<Error>, end: End) -> Option<Cause> {
    match (unwinding, end) {
        (Some(Error::Stop(_)), End::Raised(Error::Stop(_))) => None,
        (Some(Error::Stop(cause)), _) => Some(cause),
        _ => None,
    }
}

/// `times` as many programs as `PROPTEST_CASES` says.
fn config(times: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: times * usual.cases,
        failure_persistence: None,
        ..usual
    }
}

proptest! {
    #![proptest_config(config(4))]

    #[test]
    fn scopes_behave_as_the_model(program in programs()) {
        let expected = rules::run(&program);
        prop_assert_eq!(run_for_real(&program), expected);
    }
}

fn block(kind: Kind, timeout: Option<Seconds>, body: Vec<Step>) -> Step {
    Step::Block {
        kind,
        timeout,
        body,
        catch: false,
    }
}

/// Rare programs that were found at random once.
#[test]
fn scopes_behave_as_the_model_where_they_once_did_not() {
    let look = Step::Checkpoint { swallow: false };
    let cancel = |grace| Step::CancelTask { grace };
    let scope = |body| block(Kind::CancelScope, Some(0), body);
    // Two deadlines pass unnoticed before an outer cancel: the earlier one came first.
    let deadlines = vec![scope(vec![
        Step::Advance { by: 1 },
        scope(vec![cancel(None), look.clone()]),
    ])];
    // A cancel ends a zone in a zone no later than the outer one.
    let inner = block(Kind::Cleanup, None, vec![cancel(Some(0)), look]);
    let zones = vec![block(Kind::Cleanup, None, vec![inner])];
    for body in [deadlines, zones] {
        let program = Program {
            as_task: true,
            body,
        };
        assert_eq!(run_for_real(&program), rules::run(&program));
    }
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn i1_a_cancelled_scope_raises_at_every_checkpoint_until_it_is_left(program in programs()) {
        let events = run_for_real(&program);
        let mut cancelled = Vec::new();
        for (open, event) in with_open_frames(&events) {
            let Event::Looked { raised, .. } = event else { continue };
            let Some(innermost) = open.last() else { continue };
            // From the innermost frame outwards, up to one that hides the rest.
            let hidden_by = open.iter().rposition(|at| hides(kind_at(&events, *at))).unwrap_or(0);
            let sees_a_cancelled_one = open[hidden_by..].iter().any(|at| cancelled.contains(at));
            prop_assert!(raised.is_some() || !sees_a_cancelled_one, "{events:#?}");
            if raised.is_some() {
                cancelled.push(*innermost);
            }
        }
    }

    #[test]
    fn i3_no_stop_of_a_checkpoint_passes_the_outermost_scope(body in steps()) {
        let program = Program { as_task: false, body };
        let events = run_for_real(&program);
        // A stop that the program raises again may belong to no open scope any more.
        let mut raised_here = None;
        for (open, event) in with_open_frames(&events) {
            match event {
                Event::Looked { raised, .. } => raised_here = *raised,
                Event::Left { unwinding: Some(Error::Stop(cause)), end, .. }
                    if raised_here == Some(*cause) && open.len() == 1 && !raises_old(&program.body) =>
                {
                    prop_assert_ne!(*end, End::Raised(Error::Stop(*cause)));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn i3_an_absorbed_stop_is_gone(program in programs()) {
        let events = run_for_real(&program);
        for pair in events.windows(2) {
            if let [
                Event::Left { unwinding: before, end, .. },
                Event::Left { unwinding: Some(Error::Stop(_)), .. },
            ] = pair
            {
                let gone = absorbed(*before, *end).is_some();
                prop_assert!(!gone || raises_old(&program.body), "absorbed twice: {pair:?}");
            }
        }
    }

    #[test]
    fn i4_a_scope_that_is_not_cancelled_absorbs_nothing(program in programs()) {
        // Without cancels and deadlines no scope is cancelled: a foreign stop passes.
        let mut program = program;
        pacify(&mut program.body);
        let clock = testing::freeze();
        let foreign = Stop::Cancelled(crate::Cause::now(CauseKind::Explicit, None, None));
        let mut machine = Machine { clock: &clock, start: Time::now(), task: None, old: Some(foreign), events: Vec::new() };
        let _ = machine.steps(&program.body, None);
        for event in &machine.events {
            if let Event::Left { unwinding, end, .. } = event {
                prop_assert_eq!(absorbed(*unwinding, *end), None);
            }
        }
    }

    #[test]
    fn i5_deadline_exceeded_only_where_the_own_deadline_passed_first(program in programs()) {
        let mut program = program;
        freeze_deadlines(&mut program.body);
        let events = run_for_real(&program);
        for (open, event) in with_open_frames(&events) {
            let Event::Left { now, unwinding: Some(Error::Stop(_)), end, .. } = event else { continue };
            if *end != End::Raised(Error::DeadlineExceeded) {
                continue;
            }
            let entered = *open.last().expect("a frame that is left was entered");
            let Event::Entered { deadline, .. } = events[entered] else { unreachable!() };
            prop_assert!(deadline.is_some_and(|deadline| deadline <= *now), "{events:#?}");
        }
    }

    #[test]
    fn i6_a_plain_scope_never_loosens_the_effective_deadline(program in programs()) {
        let mut program = program;
        freeze_deadlines(&mut program.body);
        let events = run_for_real(&program);
        for (open, event) in with_open_frames(&events) {
            let Event::Entered { kind, deadline, .. } = event else { continue };
            let [.., around, _] = open[..] else { continue };
            let Event::Entered { deadline: outer, kind: around, .. } = events[around] else { unreachable!() };
            // A zone's end may come earlier while it is open, never later.
            if !hides(*kind) && around != Kind::Cleanup {
                prop_assert!(deadline.unwrap_or(u64::MAX) <= outer.unwrap_or(u64::MAX));
            }
        }
    }

    #[test]
    fn i7_inside_a_shield_only_its_own_bound_cancels_and_it_absorbs_that(program in programs()) {
        let events = run_for_real(&program);
        for (open, event) in with_open_frames(&events) {
            match event {
                Event::Looked { now, raised } => {
                    let Some(innermost) = open.last() else { continue };
                    if let Event::Entered { kind: Kind::Shield, deadline, .. } = events[*innermost] {
                        let over = deadline.is_some_and(|deadline| deadline <= *now);
                        prop_assert_eq!(raised.is_some(), over);
                    }
                }
                Event::Left { kind: Kind::Shield, unwinding: Some(Error::Stop(cause)), end, .. } => {
                    let Event::Entered { deadline, .. } = events[*open.last().unwrap()] else { unreachable!() };
                    if cause.deadline && deadline == Some(cause.at) {
                        prop_assert_eq!(*end, End::Quiet);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn i8_all_clean_up_zones_under_one_cancellation_share_one_grace(
        grace in 0..8u64,
        depth in 0..4usize,
        body in steps(),
        later in steps(),
    ) {
        // The task is cancelled at 0, inside several zones, and one more opens afterwards.
        let mut first = vec![Step::CancelTask { grace: Some(grace) }];
        first.extend(body);
        let zones = (0..depth).fold(first, |inner, _| vec![zone(inner)]);
        let program = zones.into_iter().chain([zone(later)]).collect();
        let events = run_for_real(&Program { as_task: true, body: program });
        for (open, event) in with_open_frames(&events) {
            let (Event::Looked { now, raised }, false) = (event, open.is_empty()) else { continue };
            let shielded = open.iter().any(|at| kind_at(&events, *at) == Kind::Shield);
            if !shielded && *now >= grace {
                prop_assert!(raised.is_some(), "{events:#?}");
            }
        }
    }
}

fn zone(body: Vec<Step>) -> Step {
    Step::Block {
        kind: Kind::Cleanup,
        timeout: None,
        body,
        catch: true,
    }
}

fn raises_old(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::RaiseOld => true,
        Step::Block { body, .. } => raises_old(body),
        _ => false,
    })
}

fn change_all(steps: &mut [Step], change: &impl Fn(&mut Step)) {
    for step in steps {
        change(step);
        if let Step::Block { body, .. } = step {
            change_all(body, change);
        }
    }
}

/// Nothing in this program cancels.
fn pacify(steps: &mut [Step]) {
    change_all(steps, &|step| match step {
        Step::Block { timeout, .. } => *timeout = None,
        Step::Cancel { .. } | Step::CancelTask { .. } | Step::SetDeadline { .. } => {
            *step = Step::RaiseOld;
        }
        _ => {}
    });
}

/// Deadlines stay where they were put at the start.
fn freeze_deadlines(steps: &mut [Step]) {
    change_all(steps, &|step| {
        if let Step::SetDeadline { .. } = step {
            *step = Step::Checkpoint { swallow: false };
        }
    });
}
