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
        keep_signals();
        if catch_panic(|| act(&mut **dashboard)).is_err() {
            self.interrupter.stop(None);
            let dashboard = self.dashboard.take();
            // Its end panics too.
            let _ = catch_panic(|| drop(dashboard));
            restore_terminal();
        }
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

/// Methods of a trait that the dashboard's own stand behind.
macro_rules! guarded {
    ($trait:ident: $($method:ident($($argument:ident: $type:ty),*))*) => {
        $(fn $method(&mut self, $($argument: $type),*) {
            self.with(|dashboard| $trait::$method(dashboard, $($argument),*));
        })*
    };
}

impl MetricsRendererTraining for Guarded {
    guarded!(MetricsRendererTraining:
        update_train(state: MetricState)
        update_valid(state: MetricState)
    );

    fn on_train_end(
        &mut self,
        summary: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.with(|dashboard| drop(dashboard.on_train_end(summary)));
        Ok(())
    }
}

impl TrainingProgressLogger for Guarded {
    guarded!(TrainingProgressLogger:
        start(epochs: usize, first: usize, items: Option<usize>, label: Option<&str>)
        update_epoch(epoch: usize)
        start_split(split: &str, items: usize)
        update_split(items: usize)
        end_split()
        end()
        log_event_training(event: String)
    );
}

impl MetricsRenderer for Guarded {
    guarded!(MetricsRenderer: manual_close() register_metric(definition: MetricDefinition));
}

without_evaluator!(Guarded);
