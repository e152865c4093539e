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
        let t = self.temperature;
        let valid = t.is_finite() && t >= 0.0;
        require(valid, "temperature", t, "a finite number of at least 0")?;
        let valid = self.top_k != Some(0);
        require(
            valid,
            "top_k",
            0.0,
            "at least 1, or left out for all tokens",
        )?;
        let valid = self.top_p > 0.0 && self.top_p <= 1.0;
        require(valid, "top_p", self.top_p, "above 0 and at most 1")?;
        Ok(())
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
        let kept = ranked
            .iter()
            .position(|(_, p)| {
                reached += weight(*p);
                reached >= self.top_p * total
            })
            .map_or(ranked.len(), |last| last + 1);
        ranked.truncate(kept);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.1, 0.4, 0.3, 0.2.
    fn log_probs() -> Vec<f64> {
        [0.1_f64, 0.4, 0.3, 0.2].map(f64::ln).to_vec()
    }

    fn shares(sampling: &Sampling, never: Option<u32>) -> Vec<f64> {
        let mut counts = [0.0; 4];
        for k in 0..10_000 {
            let u = (k as f64 + 0.5) / 10_000.0;
            let token = sampling.draw(&log_probs(), never, u).unwrap();
            counts[token as usize] += 1e-4;
        }
        counts.to_vec()
    }

    fn assert_shares(sampling: &Sampling, never: Option<u32>, expected: [f64; 4]) {
        for (share, expected) in shares(sampling, never).iter().zip(expected) {
            assert!(
                (share - expected).abs() < 2e-4,
                "{sampling:?}: {share} {expected}"
            );
        }
    }

    fn sampling(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampling {
        Sampling {
            temperature,
            top_k,
            top_p,
        }
    }

    #[test]
    fn tokens_come_as_often_as_the_distribution_says() {
        assert_shares(&sampling(1.0, None, 1.0), None, [0.1, 0.4, 0.3, 0.2]);
        // Half the temperature squares probabilities.
        let squares = [0.01, 0.16, 0.09, 0.04].map(|p| p / 0.30);
        assert_shares(&sampling(0.5, None, 1.0), None, squares);
        assert_shares(&sampling(0.0, None, 1.0), None, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_tail_is_cut() {
        let half = [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0];
        assert_shares(&sampling(1.0, Some(2), 1.0), None, half);
        assert_shares(&sampling(1.0, None, 0.6), None, half);
        // A set that just one token fills.
        assert_shares(&sampling(1.0, None, 0.3), None, [0.0, 1.0, 0.0, 0.0]);
        // Without the likeliest token the others are scaled up.
        let rest = [1.0 / 6.0, 0.0, 0.5, 1.0 / 3.0];
        assert_shares(&sampling(1.0, None, 1.0), Some(1), rest);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let message = |sampling: Sampling| sampling.validate().unwrap_err().to_string();
        assert!(sampling(0.0, Some(1), 1.0).validate().is_ok());
        assert_eq!(
            message(sampling(-1.0, None, 1.0)),
            "temperature is -1, but must be a finite number of at least 0"
        );
        assert!(message(sampling(1.0, Some(0), 1.0)).starts_with("top_k is 0"));
        assert!(message(sampling(1.0, None, 1.5)).starts_with("top_p is 1.5"));
    }

    #[test]
    fn what_is_no_distribution_is_an_error() {
        let nan = [0.0, f64::NAN, -1.0];
        let impossible = [f64::NEG_INFINITY; 3];
        let cases: [(&[f64], Option<u32>); 4] = [
            (&nan, None),
            (&impossible, None),
            (&[], None),
            (&[0.0], Some(0)),
        ];
        for sampling in [sampling(0.0, None, 1.0), sampling(1.0, Some(1), 0.5)] {
            for (log_probs, never) in cases {
                let error = sampling.draw(log_probs, never, 0.5).unwrap_err();
                assert!(
                    error.to_string().starts_with("no token can be drawn"),
                    "{error}"
                );
            }
            // A token that cannot come leaves the others.
            let token = sampling
                .draw(&[f64::NEG_INFINITY, -3.0], None, 0.5)
                .unwrap();
            assert_eq!(token, 1);
        }
    }
}
