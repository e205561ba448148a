"""The judges that verifiers can be made of; `suite.methods.search.verifier.JUDGES` names them."""
