//! burn-train's dashboard, so that it cannot take a training with it.

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, default_renderer,
};
use burn::train::{Interrupter, LearnerSummary};
use crossterm::event::DisableMouseCapture;
use crossterm::terminal::{LeaveAlternateScreen, disable_raw_mode};
use crossterm::{cursor::Show, execute};
use deq_data::catch_panic;

/// The dashboard, which stops training instead of panicking.
pub(super) fn guarded(interrupter: &Interrupter, round: Option<usize>) -> Box<dyn MetricsRenderer> {
    Box::new(Guarded {
        dashboard: Some(default_renderer(interrupter.clone(), round)),
        interrupter: interrupter.clone(),
    })
}

/// Leaves the dashboard's screen, for a process that ends without waiting for it.
pub fn restore_terminal() {
    let _ = disable_raw_mode();
    let _ = execute!(
        std::io::stdout(),
        DisableMouseCapture,
        LeaveAlternateScreen,
        Show
    );
}

/// A dashboard that is given up when it panics, as it does on its key for killing the program: then
/// training stops with a checkpoint.
struct Guarded {
    dashboard: Option<Box<dyn MetricsRenderer>>,
    interrupter: Interrupter,
}

impl Guarded {
    fn with(&mut self, act: impl FnOnce(&mut dyn MetricsRenderer)) {
        let Some(dashboard) = &mut self.dashboard else {
            return;
        };
        if catch_panic(|| act(&mut **dashboard)).is_err() {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.interrupter.stop(None);
        let dashboard = self.dashboard.take();
        // Its end panics too.
        let _ = catch_panic(|| drop(dashboard));
        restore_terminal();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let dashboard = self.dashboard.take();
        if catch_panic(|| drop(dashboard)).is_err() {
            restore_terminal();
        }
    }
}

/// Lets Ctrl-C be a signal again, which the raw mode of the dashboard turns into a key that it
/// ignores.
#[cfg(unix)]
fn keep_signals() {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let terminal = std::io::stdin();
    if let Ok(mut modes) = tcgetattr(&terminal)
        && !modes.local_modes.contains(LocalModes::ISIG)
    {
        modes.local_modes |= LocalModes::ISIG;
        let _ = tcsetattr(&terminal, OptionalActions::Now, &modes);
    }
}

#[cfg(not(unix))]
fn keep_signals() {}

impl MetricsRendererTraining for Guarded {
    fn update_train(&mut self, state: MetricState) {
        self.with(|dashboard| dashboard.update_train(state));
    }

    fn update_valid(&mut self, state: MetricState) {
        self.with(|dashboard| dashboard.update_valid(state));
    }

    fn on_train_end(
        &mut self,
        summary: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.with(|dashboard| drop(dashboard.on_train_end(summary)));
        Ok(())
    }
}

impl TrainingProgressLogger for Guarded {
    fn start(
        &mut self,
        total_epochs: usize,
        starting_epoch: usize,
        total_items: Option<usize>,
        label: Option<&str>,
    ) {
        self.with(|dashboard| {
            TrainingProgressLogger::start(
                dashboard,
                total_epochs,
                starting_epoch,
                total_items,
                label,
            );
        });
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.with(|dashboard| dashboard.update_epoch(epoch));
    }

    fn start_split(&mut self, split: &str, total_items: usize) {
        self.with(|dashboard| dashboard.start_split(split, total_items));
    }

    fn update_split(&mut self, items_processed: usize) {
        keep_signals();
        self.with(|dashboard| dashboard.update_split(items_processed));
    }

    fn end_split(&mut self) {
        self.with(|dashboard| dashboard.end_split());
    }

    fn end(&mut self) {
        self.with(|dashboard| TrainingProgressLogger::end(dashboard));
    }

    fn log_event_training(&mut self, event: String) {
        self.with(|dashboard| dashboard.log_event_training(event));
    }
}

impl EvaluationProgressLogger for Guarded {
    fn start_global_progress(&mut self, total_tests: usize) {
        self.with(|dashboard| dashboard.start_global_progress(total_tests));
    }

    fn start_test(&mut self, name: &str, total_items: usize) {
        self.with(|dashboard| dashboard.start_test(name, total_items));
    }

    fn update_test_progress(&mut self, items_processed: usize) {
        self.with(|dashboard| dashboard.update_test_progress(items_processed));
    }

    fn end_test(&mut self) {
        self.with(|dashboard| dashboard.end_test());
    }

    fn end_global_progress(&mut self) {
        self.with(|dashboard| dashboard.end_global_progress());
    }

    fn log_event_evaluation(&mut self, event: String) {
        self.with(|dashboard| dashboard.log_event_evaluation(event));
    }
}

impl MetricsRendererEvaluation for Guarded {
    fn update_test(&mut self, name: EvaluationName, state: MetricState) {
        self.with(|dashboard| dashboard.update_test(name, state));
    }

    fn on_test_end(
        &mut self,
        summary: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.with(|dashboard| drop(dashboard.on_test_end(summary)));
        Ok(())
    }
}

impl MetricsRenderer for Guarded {
    fn manual_close(&mut self) {
        self.with(|dashboard| dashboard.manual_close());
    }

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.with(|dashboard| dashboard.register_metric(definition));
    }
}
