"""The paper's findings at small size: trained, sampled, scored and set beside the paper's."""
