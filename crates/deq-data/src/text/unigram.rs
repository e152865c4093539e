//! The perplexity of a model that knows nothing but frequencies.

use super::tokens::Tokens;

/// The perplexity of `eval` when every token is drawn independently with its frequency in `train`.
///
/// Frequencies are smoothed by adding one to every count (Laplace), so that a token absent from
/// `train` does not make it infinite. A language model that does not fall below this number has
/// learnt nothing from the order of the tokens.
///
/// # Panics
///
/// If `eval` is empty, or an id is not below `vocabulary`.
///
/// # Examples
///
/// ```
/// // Four tokens in equal shares are as hard to guess as a die with four sides.
/// let text = [0, 1, 2, 3];
/// assert!((deq_data::unigram_perplexity(&text, &text, 4) - 4.0).abs() < 1e-12);
/// ```
pub fn unigram_perplexity(
    train: impl Into<Tokens>,
    eval: impl Into<Tokens>,
    vocabulary: usize,
) -> f64 {
    let (train, eval) = (train.into(), eval.into());
    assert!(!eval.is_empty(), "there is no token to evaluate");
    let mut counts = vec![1.0_f64; vocabulary];
    for token in &train {
        counts[token as usize] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let nats: f64 = eval
        .iter()
        .map(|token| (total / counts[token as usize]).ln())
        .sum();
    (nats / eval.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::unigram_perplexity;

    #[test]
    fn a_uniform_text_has_the_perplexity_of_its_vocabulary() {
        let text: Vec<u32> = (0..40).map(|i| i % 4).collect();
        assert!((unigram_perplexity(&text, &text, 4) - 4.0).abs() < 1e-12);
    }

    #[test]
    fn an_absent_token_counts_as_seen_once() {
        // Counts 2 and 1 over 3: (3/2)^(1/2) (3/1)^(1/2).
        let expected = (1.5_f64 * 3.0).sqrt();
        assert!((unigram_perplexity(&[0], &[0, 1], 2) - expected).abs() < 1e-12);
    }
}
