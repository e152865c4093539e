//! Which token comes next.

use super::error::TextError;
use crate::error::{TrainError, require};

/// How the next token is drawn from a model's distribution.
///
/// The distribution is sharpened by the temperature, cut to the `top_k` likeliest tokens, then to
/// the smallest set whose probability reaches `top_p` (Holtzman et al. 2020, "The Curious Case of
/// Neural Text Degeneration"), and drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides log-probabilities. 1 draws from the model's own distribution, 0 always takes the
    /// likeliest token. Default 0.8.
    pub temperature: f64,
    /// The number of likeliest tokens to draw from; none for all. Default none.
    pub top_k: Option<usize>,
    /// The probability that the set drawn from reaches. Default 0.95; 1 for all.
    pub top_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: None,
            top_p: 0.95,
        }
    }
}

impl Sampling {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`RecipeError::OutOfRange`](crate::RecipeError::OutOfRange) naming the first field that is
    /// wrong.
    pub fn validate(&self) -> Result<(), TrainError> {
        let (t, p) = (self.temperature, self.top_p);
        let valid = t.is_finite() && t >= 0.0;
        require(valid, "temperature", t, "a finite number of at least 0")?;
        let right = "at least 1, or left out for all tokens";
        require(self.top_k != Some(0), "top_k", 0.0, right)?;
        let valid = p > 0.0 && p <= 1.0;
        Ok(require(valid, "top_p", p, "above 0 and at most 1")?)
    }

    /// The token at `u`, uniform in `[0, 1)`, of the cut distribution. `never` is left out.
    ///
    /// # Errors
    ///
    /// [`TextError::NothingToDraw`] if a log-probability is not a number, or none is finite.
    pub fn draw(&self, log_probs: &[f64], never: Option<u32>, u: f64) -> Result<u32, TextError> {
        let mut ranked: Vec<(u32, f64)> = (0..)
            .zip(log_probs.iter().copied())
            .filter(|(token, _)| Some(*token) != never)
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let numbers = log_probs.iter().all(|log_prob| !log_prob.is_nan());
        let Some(&(likeliest, best)) = ranked.first().filter(|(_, p)| numbers && p.is_finite())
        else {
            return Err(TextError::NothingToDraw);
        };
        if self.temperature <= 0.0 {
            return Ok(likeliest);
        }
        if let Some(k) = self.top_k {
            ranked.truncate(k);
        }
        let weight = |log_prob: f64| ((log_prob - best) / self.temperature).exp();
        let total: f64 = ranked.iter().map(|(_, p)| weight(*p)).sum();
        let mut reached = 0.0;
        let last = ranked.iter().position(|(_, p)| {
            reached += weight(*p);
            reached >= self.top_p * total
        });
        ranked.truncate(last.map_or(ranked.len(), |last| last + 1));
        let total: f64 = ranked.iter().map(|(_, p)| weight(*p)).sum();
        let mut left = u * total;
        for (token, log_prob) in &ranked {
            left -= weight(*log_prob);
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(ranked.last().map_or(likeliest, |(token, _)| *token))
    }
}
