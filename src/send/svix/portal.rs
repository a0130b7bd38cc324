//! Links into Svix's application portal.

use ::svix::error::Error as SvixError;
use ::svix::models::{AppPortalAccessIn, ApplicationIn};

use super::{SvixSender, api_failure};
use crate::domain::delivery::Outcome;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum PortalError {
    /// Svix does not know the application, and we may not create it.
    #[error("Svix has no application `{0}`: it is created with its first event, or in Svix")]
    UnknownApplication(String),
    /// Svix did not give one; its own words.
    #[error("Svix gave no link: {0}")]
    Refused(String),
}

impl SvixSender {
    /// A link into the portal of an application, good for `expiry_s` seconds. Whoever has it, is in.
    ///
    /// # Errors
    /// [`PortalError`].
    pub async fn portal_link(&self, app: &str, tenant: &str, expiry_s: u64) -> Result<String, PortalError> {
        let application = self
            .options
            .create_applications
            .then(|| ApplicationIn { uid: Some(app.to_owned()), ..ApplicationIn::new(tenant.to_owned()) });
        // Svix passes over the application where it has one.
        let wish = AppPortalAccessIn { application, expiry: Some(expiry_s), ..AppPortalAccessIn::new() };
        match self.api.authentication().app_portal_access(app.to_owned(), wish, None).await {
            Ok(access) => Ok(access.url),
            Err(SvixError::Http(answer)) if answer.status.as_u16() == 404 => {
                Err(PortalError::UnknownApplication(app.to_owned()))
            }
            Err(error) => Err(PortalError::Refused(match api_failure(&error) {
                Outcome::Failed(failure)
                | Outcome::Unauthorized(failure)
                | Outcome::Refused(failure)
                | Outcome::Rejected(_, failure)
                | Outcome::Throttled { failure, .. } => format!("{} {}", failure.code, failure.detail),
                other => format!("{other:?}"),
            })),
        }
    }
}
