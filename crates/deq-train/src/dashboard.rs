//! What burn-train shows while a model trains: its dashboard's metrics, and plain lines where there
//! is no terminal.

/// What burn-train's evaluator, which nothing here runs, wants of every renderer.
macro_rules! without_evaluator {
    ($renderer:ident) => {
        impl EvaluationProgressLogger for $renderer {
            fn start_global_progress(&mut self, _total_tests: usize) {}
            fn start_test(&mut self, _name: &str, _total_items: usize) {}
            fn update_test_progress(&mut self, _items_processed: usize) {}
            fn end_test(&mut self) {}
            fn end_global_progress(&mut self) {}
            fn log_event_evaluation(&mut self, _event: String) {}
        }

        impl MetricsRendererEvaluation for $renderer {
            fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
        }
    };
}

#[cfg(feature = "dashboard")]
mod terminal;

#[cfg(feature = "dashboard")]
pub use terminal::restore_terminal;

use crate::measure::Measure;
use crate::records::StepRecord;
use burn::tensor::TensorReadError;
use burn::train::Interrupter;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{
    Metric, MetricAttributes, MetricDefinition, MetricId, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// burn-train's dashboard, where it is compiled in, there is a terminal to show it on, and nothing
/// against it; lines otherwise.
#[cfg_attr(not(feature = "dashboard"), expect(unused_variables))]
pub(crate) fn renderer(
    plain: bool,
    interrupter: &Interrupter,
    round: Option<usize>,
) -> Box<dyn MetricsRenderer> {
    #[cfg(feature = "dashboard")]
    if !plain && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return terminal::guarded(interrupter, round);
    }
    Box::new(LineRenderer::default())
}

/// A number of a step, averaged over a split.
#[derive(Clone)]
pub(crate) struct Gauge {
    name: MetricName,
    /// The number, if the step has it, and how much it counts in the mean.
    value: fn(&StepRecord) -> Option<(f64, usize)>,
    /// Applied to means on display: a perplexity is the exponential of a mean, not a mean of
    /// exponentials.
    display: fn(f64) -> f64,
    higher_is_better: bool,
    sum: f64,
    weight: usize,
    current: f64,
}

impl Gauge {
    fn new(name: &str, value: fn(&StepRecord) -> Option<(f64, usize)>) -> Self {
        Self {
            name: Arc::new(name.to_owned()),
            value,
            display: |mean| mean,
            higher_is_better: false,
            sum: 0.0,
            weight: 0,
            current: f64::NAN,
        }
    }

    pub(crate) fn loss() -> Self {
        Self::new("Loss", loss)
    }

    /// The measure of a task. All but a perplexity are averages of what each batch has: that is the
    /// accuracy of a split, but not its mean IoU.
    pub(crate) fn quality(measure: &Measure) -> Self {
        let mut name = measure.name().to_owned();
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        match measure {
            Measure::Perplexity => Self {
                display: f64::exp,
                ..Self::new(&name, loss)
            },
            _ => Self {
                higher_is_better: measure.higher_is_better(),
                ..Self::new(&format!("{name} per batch"), |step| {
                    Some((step.quality?, step.targets))
                })
            },
        }
    }

    pub(crate) fn steps() -> Self {
        Self::new("Steps per solve", |step| {
            let solve = step.forward.as_ref()?;
            Some((solve.steps, solve.status.total()))
        })
    }

    pub(crate) fn residual() -> Self {
        Self::new("Residual", |step| {
            let solve = step.forward.as_ref()?;
            Some((solve.residual, solve.status.total()))
        })
    }

    fn add(&mut self, step: &StepRecord) {
        if let Some((value, weight)) = (self.value)(step)
            && weight > 0
        {
            self.sum += value * weight as f64;
            self.weight += weight;
            self.current = value;
        }
    }

    fn mean(&self) -> f64 {
        (self.display)(self.sum / self.weight as f64)
    }

    fn entry(&self) -> SerializedEntry {
        if self.weight == 0 {
            return SerializedEntry::not_available(None);
        }
        let (mean, current) = (self.mean(), (self.display)(self.current));
        SerializedEntry::new(
            format!("epoch {} - batch {}", number(mean), number(current)),
            NumericEntry::Value(current).serialize(),
        )
    }
}

/// The loss of a step, which is a mean over its targets.
fn loss(step: &StepRecord) -> Option<(f64, usize)> {
    Some((step.loss, step.targets))
}

impl Metric for Gauge {
    type Input = StepRecord;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: self.higher_is_better,
        }
        .into()
    }

    fn update(
        &mut self,
        step: &StepRecord,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.add(step);
        Ok(self.entry())
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry())
    }

    fn clear(&mut self) {
        (self.sum, self.weight) = (0.0, 0);
    }
}

impl Numeric for Gauge {
    fn value(&self) -> Option<NumericEntry> {
        (self.weight > 0).then(|| NumericEntry::Value((self.display)(self.current)))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        (self.weight > 0).then(|| NumericEntry::Value(self.mean()))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.mean())
    }
}

/// The outcomes of the solves of a split, as text.
#[derive(Clone, Default)]
pub(crate) struct StatusText {
    counts: deq_core::solvers::StatusCounts,
}

impl Metric for StatusText {
    type Input = StepRecord;

    fn name(&self) -> MetricName {
        Arc::new("Solves".to_owned())
    }

    fn update(
        &mut self,
        step: &StepRecord,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        if let Some(solve) = &step.forward {
            self.counts.merge(&solve.status);
        }
        self.compute()
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        let text = status_text(&self.counts);
        Ok(SerializedEntry::new(text.clone(), text))
    }

    fn clear(&mut self) {
        self.counts = Default::default();
    }
}

/// `converged 31 of 32, out of steps 1`, naming only what happened.
pub fn status_text(counts: &deq_core::solvers::StatusCounts) -> String {
    if counts.total() == 0 {
        return "none (unrolled)".to_owned();
    }
    let mut text = format!("converged {} of {}", counts.converged, counts.total());
    for (count, name) in [
        (counts.max_steps, "out of steps"),
        (counts.stalled, "stalled"),
        (counts.diverged, "diverged"),
        (counts.non_finite, "not finite"),
        (counts.breakdown, "broke down"),
    ] {
        if count > 0 {
            text += &format!(", {name} {count}");
        }
    }
    text
}

/// Four significant digits, in the shorter of plain and scientific notation.
pub fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 1e5 || (magnitude < 1e-2 && magnitude > 0.0) => {
            format!("{value:.2e}")
        }
        magnitude if magnitude >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// `1:05:09` or `4:07`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Progress as lines on standard error, for logs and pipes: at most one every two seconds, and one
/// at the end of a split.
#[derive(Default)]
struct LineRenderer {
    metrics: Vec<(MetricId, MetricName, String)>,
    rounds: usize,
    round: usize,
    first_round: usize,
    split: String,
    done: usize,
    total: usize,
    started: Option<Instant>,
    last_line: Option<Instant>,
}

const LINE_INTERVAL: Duration = Duration::from_secs(2);

impl LineRenderer {
    fn update(&mut self, state: MetricState) {
        let (MetricState::Generic(entry) | MetricState::Numeric(entry, _)) = state;
        let mut metrics = self.metrics.iter_mut();
        if let Some((_, _, text)) = metrics.find(|(id, ..)| *id == entry.metric_id) {
            *text = entry.serialized_entry.formatted;
        }
    }

    fn line(&mut self) {
        self.last_line = Some(Instant::now());
        let training = self.split == "train";
        let mut line = format!(
            "round {}/{} {} {}/{}",
            self.round, self.rounds, self.split, self.done, self.total
        );
        for (_, name, text) in &self.metrics {
            let text = text.strip_prefix("epoch ").unwrap_or(text);
            let (mean, current) = text.split_once(" - batch ").unwrap_or((text, text));
            let shown = if training { current } else { mean };
            line += &format!(" | {} {shown}", name.to_lowercase());
        }
        if let (true, Some(left)) = (training, self.time_left()) {
            line += &format!(" | {} left", clock(left));
        }
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn time_left(&self) -> Option<Duration> {
        let fraction = self.done as f64 / self.total.max(1) as f64;
        let done = (self.round - self.first_round) as f64 + fraction;
        let left = (self.rounds + 1 - self.first_round) as f64 - done;
        let elapsed = self.started?.elapsed();
        (done > 0.0).then(|| elapsed.mul_f64(left / done))
    }
}

impl MetricsRendererTraining for LineRenderer {
    fn update_train(&mut self, state: MetricState) {
        self.update(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.update(state);
    }
}

impl TrainingProgressLogger for LineRenderer {
    fn start(
        &mut self,
        total_epochs: usize,
        starting_epoch: usize,
        _total_items: Option<usize>,
        _label: Option<&str>,
    ) {
        self.rounds = total_epochs;
        (self.round, self.first_round) = (starting_epoch, starting_epoch);
        self.started = Some(Instant::now());
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.round = epoch + 1;
    }

    fn start_split(&mut self, split: &str, total_items: usize) {
        (self.done, self.total) = (0, total_items);
        self.split = split.to_lowercase();
    }

    fn update_split(&mut self, items_processed: usize) {
        self.done = items_processed;
        let last = self.last_line;
        if last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) {
            self.line();
        }
    }

    fn end_split(&mut self) {
        self.line();
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

without_evaluator!(LineRenderer);

impl MetricsRenderer for LineRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        let unknown = SerializedEntry::NOT_AVAILABLE.to_owned();
        self.metrics
            .push((definition.metric_id, definition.name, unknown));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_batch_counts_as_much_as_it_has_targets() {
        let steps = [(0.5, 30), (2.5, 10), (9.0, 0)].map(|(loss, targets)| StepRecord {
            loss,
            quality: Some(loss),
            targets,
            ..StepRecord::default()
        });
        for mut gauge in [Gauge::loss(), Gauge::quality(&Measure::share("accuracy"))] {
            steps.iter().for_each(|step| gauge.add(step));
            assert!((gauge.mean() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(number(2.71234), "2.712");
        assert_eq!(number(431.26), "431.3");
        assert_eq!(number(0.000_123), "1.23e-4");
        assert_eq!(number(0.0), "0.000");
        assert_eq!(clock(Duration::from_secs(247)), "4:07");
        assert_eq!(clock(Duration::from_secs(3909)), "1:05:09");
    }
}
