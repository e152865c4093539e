//! A solver chosen by data.

use crate::anderson::AndersonConfig;
use crate::broyden::BroydenConfig;
use crate::error::InvalidConfig;
use crate::picard::PicardConfig;
use crate::reversible::ReversibleConfig;
use crate::solver::Solve;
use burn::config::Config;
use std::sync::Arc;

/// Any of the solvers, for configuration files.
#[derive(Config, Debug, PartialEq)]
pub enum SolverConfig {
    /// Damped plain iteration.
    Picard(PicardConfig),
    /// Anderson acceleration.
    Anderson(AndersonConfig),
    /// Broyden's method, good or bad.
    Broyden(BroydenConfig),
    /// The reversible iteration of RevDEQ.
    Reversible(ReversibleConfig),
}

impl SolverConfig {
    /// Anderson acceleration with its defaults.
    pub fn anderson() -> Self {
        AndersonConfig::new().into()
    }

    /// Broyden's method with its defaults.
    pub fn broyden() -> Self {
        BroydenConfig::new().into()
    }

    /// The reversible iteration with its defaults.
    pub fn reversible() -> Self {
        ReversibleConfig::new().into()
    }

    /// Plain iteration.
    pub fn picard() -> Self {
        PicardConfig::new().into()
    }

    /// Checks the values and returns the solver.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<Arc<dyn Solve>, InvalidConfig> {
        Ok(match self {
            SolverConfig::Picard(config) => Arc::new(config.build()?),
            SolverConfig::Anderson(config) => Arc::new(config.build()?),
            SolverConfig::Broyden(config) => Arc::new(config.build()?),
            SolverConfig::Reversible(config) => Arc::new(config.build()?),
        })
    }
}

impl From<PicardConfig> for SolverConfig {
    fn from(config: PicardConfig) -> Self {
        SolverConfig::Picard(config)
    }
}

impl From<AndersonConfig> for SolverConfig {
    fn from(config: AndersonConfig) -> Self {
        SolverConfig::Anderson(config)
    }
}

impl From<BroydenConfig> for SolverConfig {
    fn from(config: BroydenConfig) -> Self {
        SolverConfig::Broyden(config)
    }
}

impl From<ReversibleConfig> for SolverConfig {
    fn from(config: ReversibleConfig) -> Self {
        SolverConfig::Reversible(config)
    }
}
