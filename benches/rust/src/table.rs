//! The table; each row is printed as soon as it is measured.

use std::process::Command;

/// The subject, which a filter is compared with, and the function that measures it.
pub(crate) type Bench = (&'static str, fn() -> Vec<Row>);

/// One row. The figures are in nanoseconds, or in `unit`.
pub(crate) struct Row {
    pub(crate) subject: &'static str,
    pub(crate) unit: Unit,
    /// The cost that the machine itself sets.
    pub(crate) floor: Option<f64>,
    /// tokio-util, or tokio where tokio-util has no such thing.
    pub(crate) tokio: Option<f64>,
    pub(crate) desist: f64,
    pub(crate) target: Target,
}

#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Nanos,
    Micros,
    Bytes,
}

/// The target of a row.
pub(crate) enum Target {
    /// At most this many times the floor.
    OfFloor(f64),
    /// This many times faster than tokio.
    Quicker(f64),
    /// At most this figure.
    AtMost(f64),
    /// No target: shown for comparison.
    None,
}

pub(crate) fn print_header() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc = rustc.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    println!(
        "{}, {cores} cores; {}",
        cpu.map_or("unknown CPU", |(_, name)| name),
        rustc.unwrap_or_default()
    );
    println!(
        "Release profile without LTO. The sides take turns; a figure is the median of its rounds. Work"
    );
    println!(
        "of a single thread is measured in CPU time. Stall, wake and deadline need a quiet machine."
    );
    println!("\"tokio\" is tokio-util's CancellationToken, or tokio where that has no such thing.");
    println!();
    println!(
        "{:<46} {:>10} {:>10} {:>10}   {:<22} {:<16} ",
        "", "floor", "tokio", "desist", "ratio", "target"
    );
}

impl Row {
    pub(crate) fn print(&self) {
        let shown = |figure: Option<f64>| {
            figure.map_or_else(|| "-".to_owned(), |figure| self.unit.show(figure))
        };
        let (target, verdict) = self.verdict();
        println!(
            "{:<46} {:>10} {:>10} {:>10}   {:<22} {target:<16} {verdict}",
            self.subject,
            shown(self.floor),
            shown(self.tokio),
            shown(Some(self.desist)),
            self.ratio(),
        );
    }

    fn ratio(&self) -> String {
        let floor = self
            .floor
            .map(|floor| format!("{:.2}x floor", self.desist / floor));
        let tokio = self
            .tokio
            .map(|tokio| format!("1/{:.1} tokio", tokio / self.desist));
        [floor, tokio]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn verdict(&self) -> (String, &'static str) {
        let verdict = |met| if met { "met" } else { "missed" };
        match self.target {
            Target::OfFloor(times) => (
                format!("<= {times}x floor"),
                verdict(self.floor.is_some_and(|floor| self.desist <= floor * times)),
            ),
            Target::Quicker(times) => (
                format!("<= 1/{times} tokio"),
                verdict(self.tokio.is_some_and(|tokio| self.desist * times <= tokio)),
            ),
            Target::AtMost(most) => (
                format!("<= {}", self.unit.show(most)),
                verdict(self.desist <= most),
            ),
            Target::None => (String::new(), ""),
        }
    }
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Unit::Nanos if figure < 10.0 => format!("{figure:.2} ns"),
            Unit::Nanos if figure < 10_000.0 => format!("{figure:.1} ns"),
            Unit::Nanos => format!("{:.1} us", figure / 1e3),
            Unit::Micros => format!("{:.1} us", figure / 1e3),
            Unit::Bytes => format!("{figure:.0} B"),
        }
    }
}
