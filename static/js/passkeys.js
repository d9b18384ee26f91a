// Passkeys: a button in [data-passkey] asks the browser for one ("get") or makes one ("create"), and puts the answer
// into the form's hidden field. With data-submit the form goes off at once.
(() => {
  const token = () => document.querySelector("[name=csrfmiddlewaretoken]").value;

  async function options(box) {
    const answer = await fetch(box.dataset.options, {
      method: "POST",
      headers: { Accept: "application/json", "X-CSRFToken": token() },
    });
    if (!answer.ok) throw new Error("The server gave no challenge. Load the page again.");
    return (await answer.json()).publicKey;
  }

  async function ask(box) {
    const wanted = await options(box);
    if (box.dataset.passkey === "create") {
      return navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(wanted) });
    }
    return navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(wanted) });
  }

  for (const box of document.querySelectorAll("[data-passkey]")) {
    const button = box.querySelector("button");
    const say = (text) => { box.querySelector("[role=status]").textContent = text; };
    if (!window.PublicKeyCredential?.parseRequestOptionsFromJSON) {
      button.disabled = true;
      say("Passkeys need a recent browser and https, or http://localhost.");
      continue;
    }
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const credential = await ask(box);
        box.querySelector("[name=credential]").value = JSON.stringify(credential.toJSON());
        if ("submit" in box.dataset) button.form.requestSubmit();
        else say("✓ Your passkey answered.");
      } catch (error) {
        say(error.name === "NotAllowedError" ? "Nothing was chosen. Try again." : error.message);
      } finally {
        button.disabled = false;
      }
    });
  }
})();
