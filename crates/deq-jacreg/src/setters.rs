//! The `with_...` methods of configurations.

/// One builder method for every field named.
macro_rules! setters {
    ($config:ident { $($setter:ident($field:ident: $type:ty)),+ $(,)? }) => {
        impl $config {
            $(
                #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
                #[must_use]
                pub fn $setter(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}
